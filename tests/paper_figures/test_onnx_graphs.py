"""The figure of ONNX graphs: what it says of them, that it can be read, and that it is drawn alike each time."""

from bnn_kernels.onnx_file.export import graph_of
from readable import faults, words

from paper_figures import onnx_graphs


def test_it_shows_the_operators_in_order_and_what_is_fused():
    before, after = (graph_of(onnx_graphs.network(bits), "qdq")[0] for bits in (32, 8))
    rows, spans = onnx_graphs.rows_of(before)
    assert [row.text.split()[0] for row in rows] == [node.op for node in before.nodes] and spans == []
    rows, spans = onnx_graphs.rows_of(after)
    assert [row.weight for row in rows if row.weight] == ["int8  50 x 20 x 5 x 5", "int8  800 x 500"]
    assert [span.operator for span in spans] == ["QLinearConv", "MatMulIntegerToFloat"]
    for span in spans:
        assert rows[span.first].text.startswith("DequantizeLinear")
        assert rows[span.first + 1].text in ("Conv", "MatMul")
    figure = onnx_graphs.draw(before, after)
    assert faults(figure) == []
    assert {"QLinearConv", "FP32: 18 nodes", "8 bits with Q/DQ: 28 nodes"} <= set(words(figure))


def test_it_is_drawn_alike_each_time(tmp_path):
    for name in ("one.png", "two.png"):
        onnx_graphs.main(["--output", str(tmp_path / name)])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
