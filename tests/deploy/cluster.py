"""Just enough of an API server for the `lookup` of `helm install`: it gives out objects.

Nothing is made in it: with its driver `memory` Helm makes objects nowhere.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# group/version -> plural name -> kind, of what the chart looks up
KINDS = {"v1": {"secrets": "Secret"}, "apps/v1": {"deployments": "Deployment"}}
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: c}}}}]
users: [{{name: c, user: {{}}}}]
current-context: c
"""


@contextmanager
def cluster(objects, folder):
    """The environment by which Helm finds a server that holds `objects`, path -> object."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = answer(self.path.partition("?")[0], objects)
            body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config, releases = folder / "kubeconfig", folder / "releases.yaml"
    releases.write_text("[]")
    config.write_text(KUBECONFIG.format(url=f"http://127.0.0.1:{server.server_port}"))
    try:
        yield {
            "HOME": str(folder),
            "KUBECONFIG": str(config),
            "HELM_DRIVER": "memory",
            "HELM_MEMORY_DRIVER_DATA": str(releases),
        }
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def answer(path, objects):
    """The JSON of a path; None where there is nothing."""
    if path == "/version":
        return {"major": "1", "minor": "31", "gitVersion": "v1.31.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [name.partition("/") for name in KINDS if "/" in name]
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": group, "versions": [{"groupVersion": f"{group}/{v}", "version": v}]}
                for group, _, v in versions
            ],
        }
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version in KINDS:
        return {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {"name": name, "kind": kind, "namespaced": True, "verbs": ["get", "list"]}
                for name, kind in KINDS[version].items()
            ],
        }
    return objects.get(path)
