"""Settings that the library and the command share; importing them imports neither TensorFlow nor `defended`.

`training.TrainingSettings` and `server.ServerSettings` say once what each setting's name, type, default, limits and
meaning are; `defended_cli.options` makes command-line options of them.
"""
