"""Attention to look at with the mouse and the keyboard: one piece of HTML with everything in it."""

from optbook.html_view._view import AttentionView, view

__all__ = ["AttentionView", "view"]
