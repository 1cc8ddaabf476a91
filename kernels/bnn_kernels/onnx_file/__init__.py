"""Packed models as ONNX files; what needs the package onnx imports it where it is used."""
