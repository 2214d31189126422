"""From a model to an artefact: graphs, comparison with the model, files of a deployment."""
