"""Operations on packed tensors and floats: convolution, pooling, and the epilogue behind a layer."""
