"""The picture of how often a model is right when it is so sure."""

from utils.pictures.canvas import BLUE, FAINT, MARGIN, ORANGE, TITLE, png


def reliability(path, calibration):
    """Draw accuracy by probability, and how many images there are of each. calibration: of calibration.calibrate, not {}."""
    bins = calibration["bins"]
    with png(path, 700, 560) as canvas:
        canvas.text(MARGIN, MARGIN, "How often it is right when it is so sure", size=TITLE, weight="bold")
        error = f"off by {calibration['ece']:.1f} points in the mean; at temperature {calibration['temperature']:.2f}, which "
        canvas.text(MARGIN, 48, f"{error}--predict takes, by {calibration['ece_after']:.1f}", color=FAINT)
        above, below = canvas.axes(90, 90, 570, 300), canvas.axes(90, 420, 570, 80)
        above.plot([0, 100], [0, 100], color=ORANGE, linewidth=1.4, label="as sure as right")
        above.plot([p for _, p, _ in bins], [share for _, _, share in bins], color=BLUE, marker="o", label="this model")
        above.set(xlim=(0, 102), ylim=(0, 102), xticklabels=[])
        above.set_title("accuracy, %", loc="left")
        above.legend(loc="upper left", frameon=False)
        below.bar([p for _, p, _ in bins], [images for images, _, _ in bins], width=4, color=BLUE)
        below.set(xlim=(0, 102))
        below.set_xlabel("probability of the answer, %; bars: images")
        for panel in (above, below):
            panel.grid(color="#e6e6e6", linewidth=0.8)
