from rich.console import Console

from experiments.benchmarks.scaling import scaling_figure
from experiments.reports.figures import write_picture


def test_scaling_has_a_panel_a_setting_and_a_line_a_contender(tmp_path):
    points = {str(x): {name: [x - 1, x, x + 1] for name in ("ours", "theirs")} for x in (2, 4, 8)}
    results = {
        "scaling": {"hidden_size": points, "members": points},
        "config": {"name": "small"},
        "device": "CPU",
    }
    write_picture(Console(), tmp_path / "scaling.png", scaling_figure, results)
    panels = scaling_figure(results).axes
    assert [panel.get_xlabel() for panel in panels] == ["hidden size", "members"]
    for panel in panels:
        assert [line.get_label() for line in panel.lines] == ["ours", "theirs"]
        assert [list(line.get_ydata()) for line in panel.lines] == [[2, 4, 8]] * 2
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
