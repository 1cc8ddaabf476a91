"""Recognition of quantization in plain operations: signs, comparisons and roundings in any spelling become levels."""
