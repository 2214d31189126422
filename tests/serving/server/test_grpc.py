"""The server's gRPC services: answers, errors by TensorFlow Serving's codes, labels, health."""

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("tensorflow_serving")

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from served import images
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from defended.serving.server import running

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tiny_models):
    with running(tiny_models, rest_port=None) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        yield channel


@pytest.fixture(scope="module")
def predictions(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(x, name="tiny", signature="", tensor="image", **spec):
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = name, signature
    if "version" in spec:
        message.model_spec.version.value = spec["version"]
    if "label" in spec:
        message.model_spec.version_label = spec["label"]
    message.inputs[tensor].CopyFrom(x if hasattr(x, "dtype") and not isinstance(x, np.ndarray) else proto(x))
    return message


def proto(x):
    return tf.make_tensor_proto(x)


def refused(method, message):
    with pytest.raises(grpc.RpcError) as caught:
        method(message, timeout=20)
    return caught.value.code(), caught.value.details()


class TestPredict:
    def test_answers_as_the_artefact(self, predictions, tiny_artefact):
        x = images(6)
        response = predictions.Predict(request(x, signature="audit", version=1))
        spec = response.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("tiny", 1, "audit")
        expected = tiny_artefact.audit(x)
        assert set(response.outputs) == set(expected)
        for name, value in expected.items():
            found = tf.make_ndarray(response.outputs[name])
            assert found.dtype == value.dtype
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)

    def test_values_are_in_the_fields_of_their_types(self, predictions):
        outputs = predictions.Predict(request(images(2))).outputs
        assert len(outputs["label"].int64_val) == len(outputs["rejected"].bool_val) == 2
        assert len(outputs["scores"].float_val) == 6

    def test_a_filter_chooses_outputs(self, predictions):
        message = request(images(1))
        message.output_filter.append("label")
        assert set(predictions.Predict(message).outputs) == {"label"}
        message.output_filter.append("label")
        assert refused(predictions.Predict, message) == (
            Code.INVALID_ARGUMENT,
            "duplicate output tensor alias: label",
        )
        message.output_filter[1] = "certified_radius"
        code, details = refused(predictions.Predict, message)
        assert code is Code.INVALID_ARGUMENT
        assert "output tensor alias not found in signature: certified_radius" in details

    def test_values_by_number_are_read_too_and_one_fills_the_rest(self, predictions, tiny_artefact):
        message = predict_pb2.PredictRequest()
        message.model_spec.name = "tiny"
        tensor = message.inputs["image"]
        tensor.dtype = 1
        for size in (1, 4, 4, 1):
            tensor.tensor_shape.dim.add(size=size)
        tensor.float_val.extend([0.25, 0.5])
        x = np.full(16, 0.5, "float32")
        x[0] = 0.25
        expected = tiny_artefact(x.reshape(1, 4, 4, 1))["scores"]
        np.testing.assert_allclose(tf.make_ndarray(predictions.Predict(message).outputs["scores"]), expected, rtol=1e-5)

    def test_an_empty_batch_has_an_empty_answer(self, predictions):
        response = predictions.Predict(request(images(0)))
        assert tf.make_ndarray(response.outputs["label"]).shape == (0,)

    def test_what_is_not_finite_is_rejected_and_its_neighbour_is_not_touched(self, predictions, tiny_artefact):
        x = images(3)
        x[1, 0, 0, 0] = np.nan
        labels = tf.make_ndarray(predictions.Predict(request(x)).outputs["label"])
        expected = tiny_artefact(images(3))["label"]
        assert labels.tolist() == [expected[0], -1, expected[2]]


class TestErrors:
    @pytest.mark.parametrize(
        ("message", "code", "text"),
        [
            (lambda: predict_pb2.PredictRequest(), Code.INVALID_ARGUMENT, "Missing ModelSpec"),
            (lambda: request(images(1), name=""), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
            (lambda: request(images(1), name="no"), Code.NOT_FOUND, "Servable not found for request: Latest(no)"),
            (lambda: request(images(1), version=-3), Code.NOT_FOUND, "Specific(tiny, -3)"),
            (lambda: request(images(1), label="no"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: no"),
            (
                lambda: request(images(1), signature="no"),
                Code.FAILED_PRECONDITION,
                'Serving signature key "no" not found.',
            ),
            (
                lambda: request(images(1), tensor="picture"),
                Code.INVALID_ARGUMENT,
                "input tensor alias not found in signature: picture. Inputs expected to be in the set {image}.",
            ),
            (
                lambda: request(images(1).astype("float64")),
                Code.INVALID_ARGUMENT,
                "Expects arg[0] to be float but double is provided",
            ),
            (
                lambda: request(images(1)[0]),
                Code.INVALID_ARGUMENT,
                "Input tensor 'image' must have the shape [?,4,4,1], but has [4,4,1]",
            ),
            (lambda: request(images(1025)), Code.INVALID_ARGUMENT, "Task size 1025 is larger than maximum"),
        ],
    )  # fmt: skip
    def test_have_tensorflow_servings_codes(self, predictions, message, code, text):
        found, details = refused(predictions.Predict, message())
        assert found is code
        assert text in details

    def test_no_inputs_and_too_many(self, predictions):
        message = request(images(1))
        message.inputs["more"].CopyFrom(proto(images(1)))
        code, details = refused(predictions.Predict, message)
        assert code is Code.INVALID_ARGUMENT
        assert "input size does not match signature: 2!=1 len({image,more}) != len({image})" in details
        assert "Sent extra: {more}. Missing but required: {}." in details

    def test_a_small_message_cannot_claim_a_huge_tensor(self, predictions):
        for sizes in ((2**40, 4, 4, 1), (2**62, 2**62, 4, 1), (-1, 4, 4, 1)):
            message = predict_pb2.PredictRequest()
            message.model_spec.name = "tiny"
            tensor = message.inputs["image"]
            tensor.dtype = 1
            for size in sizes:
                tensor.tensor_shape.dim.add(size=size)
            tensor.float_val.append(0.5)
            assert refused(predictions.Predict, message)[0] is Code.INVALID_ARGUMENT

    def test_content_of_another_size_is_refused(self, predictions):
        message = request(images(2))
        message.inputs["image"].tensor_content = message.inputs["image"].tensor_content[:-1]
        code, details = refused(predictions.Predict, message)
        assert code is Code.INVALID_ARGUMENT
        assert "127 bytes of content, but the shape takes 128" in details

    def test_bytes_that_are_no_message(self, channel):
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        code, details = refused(call, b"\xff\xff\xff")
        assert code is Code.INVALID_ARGUMENT
        assert "cannot be parsed as PredictRequest" in details

    def test_other_methods_of_the_services(self, predictions, channel):
        code, _ = refused(predictions.MultiInference, inference_pb2.MultiInferenceRequest())
        assert code is Code.INVALID_ARGUMENT  # it has no task
        code, _ = refused(channel.unary_unary("/tensorflow.serving.PredictionService/None"), b"")
        assert code is Code.UNIMPLEMENTED
        message = regression_pb2.RegressionRequest()
        message.model_spec.name = "tiny"
        code, details = refused(predictions.Regress, message)
        assert code is Code.INVALID_ARGUMENT
        assert "Expected one output Tensor" in details
        message = classification_pb2.ClassificationRequest()
        message.model_spec.name = "tiny"
        code, details = refused(predictions.Classify, message)
        assert code is Code.INVALID_ARGUMENT
        assert "Expected one or two output Tensors" in details


class TestModels:
    def test_metadata_and_status(self, predictions, models):
        message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        message.model_spec.name = "tiny"
        response = predictions.GetModelMetadata(message)
        assert response.model_spec.version.value == 1
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        assert {"serving_default", "audit"} <= set(signatures.signature_def)
        message = get_model_status_pb2.GetModelStatusRequest()
        message.model_spec.name = "tiny"
        (entry,) = models.GetModelStatus(message).model_version_status
        assert (entry.version, entry.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)

    def test_metadata_of_other_fields_is_refused(self, predictions):
        message = get_model_metadata_pb2.GetModelMetadataRequest()
        message.model_spec.name = "tiny"
        assert "at least one metadata_field" in refused(predictions.GetModelMetadata, message)[1]
        message.metadata_field.append("weights")
        assert "Metadata field weights is not supported" in refused(predictions.GetModelMetadata, message)[1]

    def test_labels_are_set_and_paths_are_not(self, predictions, models):
        message = model_management_pb2.ReloadConfigRequest()
        config = message.config.model_config_list.config.add(name="tiny")
        config.version_labels["stable"] = 1
        models.HandleReloadConfigRequest(message)
        assert predictions.Predict(request(images(1), label="stable")).model_spec.version.value == 1
        config.version_labels["canary"] = 2
        code, details = refused(models.HandleReloadConfigRequest, message)
        assert code is Code.FAILED_PRECONDITION
        assert "version 2 of model tiny, which is not currently available" in details
        assert refused(predictions.Predict, request(images(1), label="canary"))[0] is Code.INVALID_ARGUMENT
        config.base_path = "elsewhere"
        assert refused(models.HandleReloadConfigRequest, message)[0] is Code.PERMISSION_DENIED

    def test_health(self, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
