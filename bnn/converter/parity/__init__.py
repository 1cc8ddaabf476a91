"""The parity report: a trained network and its packed form, layer by layer on the same inputs."""
