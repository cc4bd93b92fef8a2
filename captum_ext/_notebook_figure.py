"""A figure that notebooks show."""

import base64
import html
import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that notebooks and pages of sphinx-gallery show, although pyplot does not know of it."""

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self.savefig(file, format="png")
        titles = [title for axes in self.axes if (title := axes.get_title().replace("\n", " "))]
        picture = base64.b64encode(file.getvalue()).decode()
        return f'<img src="data:image/png;base64,{picture}" alt="{html.escape("; ".join(titles))}">'
