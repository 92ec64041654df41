"""Scores of image recognition."""

import math


def recognition_scores(rows, answers):
    """{"acc1": top-1, "acc5": top-5, both in per cent, "loss": cross-entropy, "images": their number} of an evaluation.

    rows: (N, 3) float64, one for each image: 1 if its label is the first answer, 1 if it is among the first five, its loss.
    answers: Answers of the same images in the same order. A new score is a float, in per cent, and docs/ADDING.md adds one.
    The sums are exact (fsum), so that the order of the images, which depends on the number of processes, does not matter.
    """
    acc1, acc5, loss = (math.fsum(column) / len(rows) for column in rows.T.tolist())
    return {"acc1": round(100 * acc1, 5), "acc5": round(100 * acc5, 5), "loss": round(loss, 6), "images": len(rows)}
