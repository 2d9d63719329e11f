"""What the documentation pages look like: templates of jinja2, and their style sheet."""

from __future__ import annotations

from typing import Final

layout_template: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% block name %}{% endblock %} · {{ title }}</title>
<link rel="stylesheet" href="/docs/style.css">
</head>
<body>
<a class="skip" href="#main">To the content</a>
<header>
<p class="title">{{ title }}</p>
<nav aria-label="Documentation">
<a href="/docs">API</a> <a href="/docs/errors">Errors</a> <a href="/openapi.json">openapi.json</a>
</nav>
</header>
<main id="main">
{% block main %}{% endblock %}
</main>
</body>
</html>
"""

api_template: Final = """\
{% extends "layout" %}
{% macro shape(of) %}
{% if of.schema %}<a href="#schema-{{ of.schema }}">{{ of.text }}</a>{% else %}{{ of.text }}\
{% endif %}
{% endmacro %}
{% macro members(rows, place) %}
<div class="wide"><table>
<thead><tr><th scope="col">Name</th>{% if place %}<th scope="col">In</th>{% endif %}\
<th scope="col">Type</th><th scope="col">Meaning</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row"><code>{{ row.name }}</code>{% if row.required %} <em>required</em>{% endif %}\
</th>{% if place %}<td>{{ row.place }}</td>{% endif %}<td>{{ shape(row.shape) }}</td>\
<td>{{ row.about }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% block name %}API{% endblock %}
{% block main %}
<h1>API</h1>
<p>{{ about }}</p>
<nav class="contents" aria-label="Operations">
<ul>
{% for operations in tags.values() %}
{% for operation in operations %}
<li><a href="#{{ operation.id }}"><b class="method">{{ operation.method }}</b> \
<code>{{ operation.path }}</code></a> {{ operation.summary }}</li>
{% endfor %}
{% endfor %}
</ul>
</nav>
{% for tag, operations in tags.items() %}
<h2>{{ tag or "Operations" }}</h2>
{% for operation in operations %}
<section id="{{ operation.id }}" aria-labelledby="{{ operation.id }}-title">
<h3 id="{{ operation.id }}-title"><b class="method">{{ operation.method }}</b> \
<code>{{ operation.path }}</code></h3>
<p>{{ operation.summary }}. {{ operation.about }}</p>
{% if operation.rows %}{{ members(operation.rows, true) }}{% endif %}
{% if operation.body %}<p>Body: {{ shape(operation.body) }}</p>{% endif %}
<div class="wide"><table>
<thead><tr><th scope="col">Status</th><th scope="col">Answer</th></tr></thead>
<tbody>
{% for answer in operation.answers %}
<tr><th scope="row">{{ answer.status }}</th><td>{{ answer.about }}\
{% if answer.shape %} {{ shape(answer.shape) }}{% endif %}\
{% for code in answer.codes %} <a href="/docs/errors#{{ code }}"><code>{{ code }}</code></a>\
{% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% else %}
<p>There are no operations.</p>
{% endfor %}
{% else %}
<p>There are no operations.</p>
{% endfor %}
<h2>Shapes</h2>
{% for name, about, rows in schemas %}
<section id="schema-{{ name }}" aria-labelledby="schema-{{ name }}-title">
<h3 id="schema-{{ name }}-title">{{ name }}</h3>
{% if about %}<p>{{ about }}</p>{% endif %}
{% if rows %}{{ members(rows, false) }}{% endif %}
</section>
{% endfor %}
{% endblock %}
"""

errors_template: Final = """\
{% extends "layout" %}
{% block name %}Errors{% endblock %}
{% block main %}
<h1>Errors</h1>
<p>Every error is <code>application/problem+json</code> with a <code>code</code> for programs and a
<code>detail</code> for people. With 429, 503 and 507 nothing was done, and the same request may
succeed after as many seconds as <code>Retry-After</code> says.</p>
{% for entry, about in entries %}
<section id="{{ entry.code }}" aria-labelledby="{{ entry.code }}-title">
<h2 id="{{ entry.code }}-title"><code>{{ entry.code }}</code></h2>
<p><b>{{ entry.status }}</b> {{ entry.title }}</p>
<p>{{ about }}</p>
</section>
{% endfor %}
{% endblock %}
"""

style_sheet: Final = """\
:root {
  --ground: #fdfdfb; --raised: #f3f3ee; --ink: #1d2021; --quiet: #5b6166; --line: #d9d9d2;
  --accent: #0b5a8a; --space: 1rem;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16181a; --raised: #1f2326; --ink: #e6e6e1; --quiet: #a2a8ad; --line: #343a3f;
    --accent: #7cc0ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 62rem; padding: var(--space); background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
header { display: flex; flex-wrap: wrap; gap: var(--space); justify-content: space-between; }
header p { margin: 0; font-weight: 600; }
nav a { margin-right: 0.75rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: var(--space); background: var(--ground); }
code { font: 0.9em ui-monospace, monospace; }
.method { color: var(--quiet); font: 600 0.85em ui-monospace, monospace; }
.contents ul { list-style: none; padding: 0; }
.contents li { margin: 0.4rem 0; }
section { border-top: 1px solid var(--line); padding: 0.5rem 0 1rem; }
section:target { background: var(--raised); }
h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0; }
th, td {
  text-align: left; vertical-align: top; padding: 0.35rem 0.75rem 0.35rem 0; font-weight: 400;
  border-bottom: 1px solid var(--line); min-width: 5rem;
}
thead th { color: var(--quiet); }
em { color: var(--quiet); font-size: 0.85em; }
"""
