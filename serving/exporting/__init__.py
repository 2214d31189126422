"""From a model to an artefact: its graphs, their comparison with the model, and the files of a deployment."""
