"""The look: theme and style sheet, and the options that every launch of the app uses."""

from pathlib import Path
from typing import Any

import gradio as gr

from suma.app.media import ROUTES

SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Return the theme: greys, one accent, and the system's fonts, so that no request leaves the page's server."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    ).set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="0px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_padding="0px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_radius="*radius_lg",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="*neutral_100",
        checkbox_label_background_fill_hover_dark="*neutral_800",
        checkbox_label_border_width="1px",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_dark="*neutral_700",
        checkbox_label_padding="4px 10px",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        block_title_background_fill="transparent",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def launch_options(max_megabytes: int = 200) -> dict[str, Any]:
    """Return the options of `demo.launch`, for the app and the tests."""
    return {
        "theme": theme(),
        "css": (Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
        "head": f"<script>{(Path(__file__).parent / 'page.js').read_text(encoding='utf-8')}</script>",
        "state_session_capacity": 300,  # Gradio keeps some 200 kB for each visitor, and for each call without a session
        "footer_links": ["api", "settings"],
        "max_file_size": f"{max_megabytes}mb",
        "app_kwargs": {"routes": ROUTES},
    }
