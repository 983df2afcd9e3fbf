"""Evaluation: folders of videos in, figures with their protocol out."""
