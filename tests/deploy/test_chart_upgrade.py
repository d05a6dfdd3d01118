"""What an upgrade keeps: the chart installed where its objects are there from before."""

import base64
import json

import pytest
import yaml

from tests.deploy.chart import CHART, helm, values_of
from tests.deploy.cluster import cluster

SECRET = "/api/v1/namespaces/rag/secrets/folio-secrets"
API = "/apis/apps/v1/namespaces/rag/deployments/folio-api"


def secret_of(documents):
    (found,) = [d for d in documents if d["kind"] == "Secret"]
    return {name: base64.b64decode(value).decode() for name, value in found["data"].items()}


def api_of(documents):
    (found,) = [
        d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] == "folio-api"
    ]
    return found


@pytest.fixture
def install(tmp_path):
    def install(objects, *options):
        """The objects of the small cluster, made where `objects` are there already."""
        values = ["--values", *values_of("small"), "--disable-openapi-validation", *options]
        with cluster(objects, tmp_path) as env:
            done = helm(
                "install", "folio", CHART, "--namespace", "rag", "-o", "json", *values, env=env
            )
        assert done.returncode == 0, done.stderr
        manifest = json.loads(done.stdout)["manifest"]
        return [document for document in yaml.safe_load_all(manifest) if document]

    return install


def live(kind, name, **rest):
    metadata = {"name": name, "namespace": "rag"}
    version = "apps/v1" if kind == "Deployment" else "v1"
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def test_the_first_installation_makes_strong_passwords_that_differ(install):
    made = secret_of(install({}))
    assert set(made) == {"milvus-password", "postgres-password", "api-key"}
    assert len(set(made.values())) == len(made)
    assert {len(password) for password in made.values()} == {32}
    assert made != secret_of(install({}))


def test_another_installation_over_the_first_changes_no_password(install):
    (secret,) = [d for d in install({}) if d["kind"] == "Secret"]
    assert secret_of(install({SECRET: secret})) == secret_of([secret])


def test_an_upgrade_keeps_the_passwords_and_makes_those_that_are_missing(install):
    data = {"milvus-password": base64.b64encode(b"from before").decode()}
    made = secret_of(install({SECRET: live("Secret", "folio-secrets", data=data)}))
    assert made["milvus-password"] == "from before"
    assert len(made["postgres-password"]) == 32


def test_a_password_that_is_given_goes_before_the_one_from_before(install):
    data = {"postgres-password": base64.b64encode(b"from before").decode()}
    objects = {SECRET: live("Secret", "folio-secrets", data=data)}
    made = secret_of(install(objects, "--set", "secrets.postgresPassword=given"))
    assert made["postgres-password"] == "given"


def test_an_upgrade_leaves_the_number_of_replicas_to_the_autoscaler(install):
    objects = {API: live("Deployment", "folio-api", spec={"replicas": 8})}
    assert api_of(install(objects))["spec"]["replicas"] == 8
    assert api_of(install({}))["spec"]["replicas"] == 3


def test_without_an_autoscaler_the_values_say_how_many(install):
    objects = {API: live("Deployment", "folio-api", spec={"replicas": 8})}
    options = ["--set", "api.autoscaling.enabled=false,api.replicas=5"]
    assert api_of(install(objects, *options))["spec"]["replicas"] == 5
