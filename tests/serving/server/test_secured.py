"""TLS and the bearer token, on both protocols; signatures that take examples, through the server."""

import datetime
import ipaddress
import json
import ssl
import urllib.error
import urllib.request

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("cryptography")

from served import images, post

from defended.serving import Client, ClientError
from defended.serving.server import running

TOKEN = "0123456789abcdef-not-a-secret"  # noqa: S105


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture(scope="module")
def server(tiny_models, certificate):
    files = {"certificate": certificate / "certificate.pem", "key": certificate / "key.pem"}
    with running(tiny_models, **files, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_answers_over_tls_with_the_token(server, certificate, tiny_artefact, protocol):
    url = server.rest_url if protocol == "rest" else server.grpc_url
    assert url.startswith("https://" if protocol == "rest" else "grpcs://")
    x = images(7)
    with Client(url, model="tiny", token=TOKEN, ca=certificate / "certificate.pem") as client:
        np.testing.assert_array_equal(client.verdicts(x).label, tiny_artefact(x)["label"])


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("token", [None, "another-token-of-the-length"])
def test_without_the_token_nothing_is_answered(server, certificate, protocol, token):
    url = server.rest_url if protocol == "rest" else server.grpc_url
    with (
        Client(url, model="tiny", token=token, ca=certificate / "certificate.pem", timeout=5) as client,
        pytest.raises(ClientError, match=r"(?i)token|unauthenticated|401"),
    ):
        client.predict(images(1))


def test_an_unknown_authority_is_refused(server):
    with pytest.raises(urllib.error.URLError) as refused:
        urllib.request.urlopen(f"{server.rest_url}/v1/models/tiny", timeout=5)  # noqa: S310
    assert isinstance(refused.value.reason, ssl.SSLCertVerificationError)


def test_classify_gives_the_verdicts_class_and_no_more(tiny_models, tiny_artefact):
    x = images(6)
    x[2, 0, 0, 0] = np.nan
    expected = tiny_artefact(x)
    examples = [{"image": image.reshape(-1).tolist()} for image in x]
    with running(tiny_models) as server:
        status, answer = post(server.rest_url, "/v1/models/tiny:classify", json.dumps(
            {"signature_name": "classify", "examples": examples}
        ).encode())  # fmt: skip
    assert status == 200, answer
    found = [row[0][0] for row in answer["results"]]
    assert found == ["⊥" if label < 0 else str(label) for label in expected["label"]]
    assert found[2] == "⊥"
    assert all(len(row) == 1 for row in answer["results"])


def examples_of(x, input_pb2):
    """An `Input` message of tf.Examples with the images."""
    given = input_pb2.Input()
    for image in x:
        example = given.example_list.examples.add()
        example.features.feature["image"].float_list.value.extend(image.reshape(-1).tolist())
    return given


def test_several_signatures_on_the_same_examples(tiny_models, tiny_artefact):
    import grpc
    from tensorflow_serving.apis import inference_pb2, input_pb2, prediction_service_pb2_grpc

    x = images(4)
    expected = ["⊥" if label < 0 else str(label) for label in tiny_artefact(x)["label"]]

    def request(*tasks):
        made = inference_pb2.MultiInferenceRequest(input=examples_of(x, input_pb2))
        for model, signature, method in tasks:
            task = made.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.name, task.model_spec.signature_name = model, signature
        return made

    refused = {
        (): grpc.StatusCode.INVALID_ARGUMENT,
        (("tiny", "classify", "classify"), ("tiny", "classify", "classify")): grpc.StatusCode.INVALID_ARGUMENT,
        (("tiny", "classify", "classify"), ("other", "x", "classify")): grpc.StatusCode.INVALID_ARGUMENT,
        (("tiny", "classify", "predict"),): grpc.StatusCode.UNIMPLEMENTED,
        (("tiny", "classify", "regress"),): grpc.StatusCode.INVALID_ARGUMENT,
        (("none", "classify", "classify"),): grpc.StatusCode.NOT_FOUND,
    }
    with running(tiny_models) as server, grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.MultiInference(request(("tiny", "classify", "classify")), timeout=20)
        assert len(answer.results) == 1
        assert answer.results[0].model_spec.version.value == 1
        found = [row.classes[0].label for row in answer.results[0].classification_result.classifications]
        assert found == expected
        for tasks, code in refused.items():
            with pytest.raises(grpc.RpcError) as error:
                stub.MultiInference(request(*tasks), timeout=20)
            assert error.value.code() == code, tasks
