"""The report's page."""

import base64
import html

from jaxrec import results
from jaxrec.reports import figures


class Page:
  """A self-contained HTML page, its figures also as files.

  Args:
    folder: where it is written.

  Attributes:
    prefix: of the names of files, where a page shows several of a kind.
  """

  def __init__(self, folder):
    self.folder, self.parts, self.prefix = folder, [], ''

  def heading(self, words: str) -> None:
    self.parts.append(f'<h2>{html.escape(words)}</h2>')

  def text(self, lines) -> None:
    self.parts += [f'<p>{line}</p>' for line in lines]

  def figure(self, name, figure, caption):
    content = figures.png(figure, dpi=130)
    path = self.folder / 'figures' / f'{results.safe_name(self.prefix + name)}.png'
    try:
      path.write_bytes(content)
    except OSError as error:
      raise results.RunError(f'{path}: cannot be written ({error.strerror}); free the disk and run again') from None
    data = base64.b64encode(content).decode()
    caption = html.escape(caption)
    self.parts.append(
      f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )

  def table(self, caption, head, lines, *, name=''):
    if not lines:
      return
    if name:
      results.write_csv(self.folder / f'{self.prefix}{name}.csv', head, lines)
    cells = ''.join(f'<th>{html.escape(h)}</th>' for h in head)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(c)}</td>' for c in line) + '</tr>' for line in lines)
    self.parts.append(
      f'<figure><figcaption>{html.escape(caption)}</figcaption><div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div></figure>'
    )

  def write(self, title):
    path = self.folder / 'report.html'
    results.write_text(path, _HTML.format(title=html.escape(title), body='\n'.join(self.parts)))
    return path


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
figure {{ margin: 1.2rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; font-size: 0.85rem; }}
.wide {{ overflow-x: auto; margin: 0.4rem 0; }} table {{ border-collapse: collapse; font-size: 0.8rem; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid #e5e5e5; text-align: left; white-space: nowrap; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
