"""Write the generated files of the Helm chart (`make chart`), so that they cannot contradict their sources.

The lower half of values.yaml is generated from `agent/settings`. values.schema.json is generated from both halves of
values.yaml and from the settings. The table in the chart's README is generated from the comments in values.yaml. A unit
test fails if a committed file differs from the generated file.
"""

from __future__ import annotations

from deploy.dev.chart import generated


def main() -> None:
    """Write those generated files of the chart whose content has changed, and print their names."""
    for path, text in generated.files().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
