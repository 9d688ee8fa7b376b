"""Grafana's dashboards in deploy/grafana: layout, variables and columns. tests/acceptance/test_monitoring.py runs their queries."""

import re
from typing import Any

import pytest

from tests.support.monitoring import DASHBOARDS

_SELECTED = 'folder_id=~"$folder", cluster_id=~"$cluster"'


@pytest.fixture(name="dashboard", params=DASHBOARDS)
def _dashboard(request: pytest.FixtureRequest) -> Any:
    return DASHBOARDS[request.param]


def test_layout(dashboard: Any) -> None:
    """Panels have different ids and titles, fit into the 24 columns, and do not overlap."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_data_source(dashboard: Any) -> None:
    """Every panel and every variable reads the data source that is selected at the top."""
    [source, *others] = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    sources = [each["datasource"] for each in (*others, *dashboard["panels"]) if each.get("type") != "row"]
    assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)


def test_links_between_dashboards() -> None:
    """Each dashboard has its own id and links to the other one."""
    ids = {name: dashboard["uid"] for name, dashboard in DASHBOARDS.items()}
    links = {name: [link["url"] for link in dashboard["links"]] for name, dashboard in DASHBOARDS.items()}
    assert links == {"backups": [f"/d/{ids['service']}"], "service": [f"/d/{ids['backups']}"]}


def test_variables_of_backups() -> None:
    """The variables folder, cluster and database depend on the previous ones, and allow several values or all, including empty ones."""
    _, *variables = DASHBOARDS["backups"]["templating"]["list"]
    assert [variable["definition"] for variable in variables] == [
        "label_values(backup_catalog_backups, folder_id)",
        'label_values(backup_catalog_backups{folder_id=~"$folder"}, cluster_id)',
        f"label_values(backup_catalog_backups{{{_SELECTED}}}, database)",
    ]
    for variable in variables:
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")


def test_queries_of_backups_are_filtered() -> None:
    """Every query applies the selected folders, clusters and databases to each of its metrics, except metrics without these labels."""
    queries = [target["expr"] for panel in DASHBOARDS["backups"]["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 30
    for name, matchers in re.findall(r"(backup_catalog_\w+)(?:\{([^}]*)\})?", " ".join(queries)):
        if name in ("backup_catalog_left_out", "backup_catalog_refresh_timestamp_seconds"):
            assert matchers == ""
        else:
            wanted = _SELECTED if name == "backup_catalog_unusable_entries" else f'{_SELECTED}, database=~"$database"'
            assert matchers.startswith(wanted)


def test_columns_of_backups() -> None:
    """Each query of the table has a column with a name, and each unit belongs to a column."""
    [table] = [panel for panel in DASHBOARDS["backups"]["panels"] if panel["type"] == "table"]
    [columns] = [each["options"]["renameByName"] for each in table["transformations"] if each["id"] == "organize"]
    labels = ("folder_id", "cluster_id", "tool", "database")
    assert list(columns) == [*labels, *(f"Value #{target['refId']}" for target in table["targets"])]
    assert {override["matcher"]["options"] for override in table["fieldConfig"]["overrides"]} <= set(columns.values())
