"""The recipes for deployment, each under the tool that its user would use.

What a tool cannot know (that one retry is one too many) is checked here, on what the tool made of
the recipe.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import yaml
from botocore.validate import ParamValidator

pytestmark = [pytest.mark.recipes, pytest.mark.filterwarnings("default")]

RECIPES = Path(__file__).parent / "recipes"
# The tools of npm, and node's own directory, are where tox put them.
NODE_MODULES = Path(os.environ.get("NODE_MODULES", "node_modules"))

ENVIRONMENT = {"FOLDER_BUCKET": "my-bucket", "FOLDER": "later", "TARGET_BUCKET": "shop-emails"}
EVERY_MINUTE = "rate(1 minute)"


def read(path: str) -> str:
    return (RECIPES / path).read_text(encoding="utf-8")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a tool, and return what it printed; if it complains, so does the test."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Copy the recipe that the test names: its tool leaves things behind."""
    return Path(shutil.copytree(RECIPES / request.param, tmp_path / request.param))


def copy_of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recipe", [name], indirect=True)


# --- Policies -------------------------------------------------------------------------------------


class Grant(NamedTuple):
    """One action on one resource."""

    action: str
    resource: str
    condition: str


def grants(policy: dict[str, Any]) -> set[Grant]:
    """List what a policy allows, one action and resource at a time."""
    found = set()
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        condition = json.dumps(statement.get("Condition", {}), sort_keys=True)
        for action in as_list(statement["Action"]):
            found |= {Grant(action, it, condition) for it in as_list(statement["Resource"])}
    return found


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def on_s3(policy: dict[str, Any]) -> set[Grant]:
    return {grant for grant in grants(policy) if grant.action.startswith("s3:")}


RUNNER = grants(json.loads(read("policies/runner.json")))


def findings(policy: str) -> list[str]:
    """Say what parliament, a linter of policies, finds wrong."""
    from parliament import analyze_policy_string  # noqa: PLC0415 - only tox -e recipes has it

    return [f"{it.issue} {it.detail}" for it in analyze_policy_string(policy).findings]


@pytest.mark.parametrize(
    "path", ["policies/runner.json", "policies/application.json", "consumer/policy.json"]
)
def test_policy(path: str) -> None:
    """Every action, resource and condition in it exists, and fits the others."""
    assert findings(read(path)) == []


# --- CloudFormation, which three of the frameworks end in -----------------------------------------


def load(path: str) -> dict[str, Any]:
    """Read a template, with CloudFormation's short forms (!Ref) written out."""
    from cfnlint.decode.cfn_yaml import loads  # noqa: PLC0415 - only tox -e recipes has it

    template: dict[str, Any] = json.loads(json.dumps(loads(read(path))))
    return template


def lint(template: dict[str, Any]) -> list[str]:
    from cfnlint.api import lint as cfn_lint  # noqa: PLC0415 - only tox -e recipes has it
    from cfnlint.config import ManualArgs  # noqa: PLC0415

    # W3005 finds that what a tool generated depends twice on the same thing.
    # https://github.com/aws-cloudformation/cfn-lint/blob/main/docs/rules.md
    config = ManualArgs(regions=["us-east-1"], ignore_checks=["W3005"])
    matches = cfn_lint(json.dumps(template), config=config)
    return [f"{match.rule.id} {match.message}" for match in matches]


class Stack:
    """A template with its parameters' defaults and references filled in, by type of resource."""

    def __init__(self, template: dict[str, Any]) -> None:
        self._values = {"AWS::StackName": "later"}
        for name, parameter in template.get("Parameters", {}).items():
            self._values[name] = parameter["Default"]
        for name, resource in template["Resources"].items():
            if resource["Type"] == "AWS::S3::Bucket" and "BucketName" in resource["Properties"]:
                self._values[name] = self._fill(resource["Properties"]["BucketName"])
        self.resources: dict[str, dict[str, Any]] = {}
        for name, resource in template["Resources"].items():
            properties = self._fill(resource.get("Properties", {}))
            self.resources.setdefault(resource["Type"], {})[name] = properties

    def _fill(self, value: Any) -> Any:
        match value:
            case {"Ref": name}:
                filled = self._values.get(name, name)
            case {"Fn::GetAtt": [name, attribute]}:
                filled = f"{name}.{attribute}"
            case {"Fn::Sub": str(text)}:
                filled = re.sub(r"\$\{(.+?)\}", lambda it: self._values.get(it[1], it[1]), text)
            case {"Fn::Join": [separator, parts]}:
                filled = separator.join(self._fill(it) for it in parts)
            case dict():
                filled = {key: self._fill(it) for key, it in value.items()}
            case list():
                filled = [self._fill(it) for it in value]
            case _:
                filled = value
        return filled

    def of_type(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = self.resources.get(kind, {})
        return found

    def role(self, name: str) -> dict[str, Any]:
        """Join what a role may do: its own policies, and those that name it."""
        own = self.of_type("AWS::IAM::Role")[name].get("Policies", [])
        named = [it for it in self.of_type("AWS::IAM::Policy").values() if name in it["Roles"]]
        documents = [policy["PolicyDocument"] for policy in [*own, *named]]
        return {"Statement": [it for document in documents for it in document["Statement"]]}

    def runners(self) -> list[dict[str, Any]]:
        """Follow each schedule to the function that it wakes."""
        found = []
        for schedule in self.of_type("AWS::Scheduler::Schedule").values():
            name = schedule["Target"]["Arn"].removesuffix(".Arn")
            function = self.of_type("AWS::Lambda::Function")[name]
            [invoke] = [
                config
                for config in self.of_type("AWS::Lambda::EventInvokeConfig").values()
                if config["FunctionName"] == name
            ]
            found.append(
                {
                    "timeout": function["Timeout"],
                    "concurrency": function["ReservedConcurrentExecutions"],
                    "retries": invoke["MaximumRetryAttempts"],
                    "age": invoke["MaximumEventAgeInSeconds"],
                    "schedule": schedule["ScheduleExpression"],
                    "schedule's retries": schedule["Target"]["RetryPolicy"],
                    "schedule's window": schedule["FlexibleTimeWindow"]["Mode"],
                    "handler": function["Handler"],
                    "environment": function["Environment"]["Variables"],
                    "policy": on_s3(self.role(function["Role"].removesuffix(".Arn"))),
                }
            )
        return found

    def triggers(self) -> list[tuple[str, list[str]]]:
        """List which bucket notifies of what."""
        found = []
        for bucket in self.of_type("AWS::S3::Bucket").values():
            notifications = bucket.get("NotificationConfiguration", {})
            for kind in ("LambdaConfigurations", "QueueConfigurations"):
                events = [[it["Event"]] for it in notifications.get(kind, ())]
                found += [(bucket["BucketName"], event) for event in events]
        for custom in self.of_type("Custom::S3BucketNotifications").values():
            [it] = custom["NotificationConfiguration"]["LambdaFunctionConfigurations"]
            found.append((custom["BucketName"], it["Events"]))
        return found

    def check_buckets(self) -> None:
        """Both buckets are made, closed and tidy, and the target tells of every arrival."""
        made = {it.get("BucketName"): it for it in self.of_type("AWS::S3::Bucket").values()}
        assert made.keys() >= {"my-bucket", "shop-emails"}
        # By default S3 blocks all public access.
        for bucket in made.values():
            assert not bucket.keys() & {"PublicAccessBlockConfiguration", "AccessControl"}
            [rule] = bucket["LifecycleConfiguration"]["Rules"]
            abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
            assert rule == {"Status": "Enabled", **abort}
        assert self.triggers() == [("shop-emails", ["s3:ObjectCreated:*"])]


def runner(handler: str = "app.handler", **environment: str) -> dict[str, Any]:
    """Say what every runner must be, in CloudFormation's words."""
    return {
        "timeout": 60,
        "concurrency": 1,
        "retries": 0,
        "age": 60,
        "schedule": EVERY_MINUTE,
        "schedule's retries": {"MaximumRetryAttempts": 0, "MaximumEventAgeInSeconds": 60},
        "schedule's window": "OFF",
        "handler": handler,
        "environment": {**ENVIRONMENT, **environment},
        "policy": RUNNER,
    }


def sam_stack() -> Stack:
    from samtranslator.translator.transform import transform  # noqa: PLC0415 - tox -e recipes

    template = load("sam/template.yaml")
    # `sam deploy` uploads the directory and puts its address in its place.
    assert (RECIPES / "sam" / template["Resources"]["Runner"]["Properties"]["CodeUri"]).is_dir()
    template["Resources"]["Runner"]["Properties"]["CodeUri"] = "s3://deployments/runner.zip"

    class NoPolicies:  # the recipe names no managed policy, so none is to be looked up
        def load(self) -> dict[str, str]:
            return {}

    translated = transform(template, {}, NoPolicies())
    assert lint(translated) == []
    return Stack(translated)


def test_sam() -> None:
    """SAM and CloudFormation accept the recipe, and the runner is set up as it must be."""
    stack = sam_stack()
    assert stack.runners() == [runner()]
    stack.check_buckets()


def test_sam_stacks_can_be_many() -> None:
    """A second stack in the same account does not take the name of the first one's schedule."""
    [schedule] = sam_stack().of_type("AWS::Scheduler::Schedule").values()
    assert "Name" not in schedule


def test_alarms() -> None:
    """CloudFormation accepts the alarms, and they watch the runner of the template beside them."""
    template = load("sam/alarms.yaml")
    assert lint(template) == []
    alarms = Stack(template)
    names = [it["FunctionName"] for it in sam_stack().of_type("AWS::Lambda::Function").values()]
    watched = alarms.of_type("AWS::CloudWatch::Alarm")
    [dimension] = watched["Errors"]["Dimensions"]
    assert dimension["Value"] in names
    [metric] = alarms.of_type("AWS::Logs::MetricFilter").values()
    assert metric["LogGroupName"] == f"/aws/lambda/{dimension['Value']}"
    [made] = metric["MetricTransformations"]
    lateness = watched["Lateness"]
    assert (lateness["Namespace"], lateness["MetricName"]) == (
        made["MetricNamespace"],
        made["MetricName"],
    )
    assert lateness["TreatMissingData"] == "breaching"


@copy_of("serverless")
def test_serverless(recipe: Path) -> None:
    """The Serverless Framework packages the recipe, and the runner is set up as it must be."""
    osls = NODE_MODULES / "osls" / "bin" / "serverless.js"
    run("node", osls, "package", cwd=recipe, SLS_TELEMETRY_DISABLED="1")
    made = recipe / ".serverless" / "cloudformation-template-update-stack.json"
    template = json.loads(made.read_text())
    assert lint(template) == []
    stack = Stack(template)
    assert stack.runners() == [runner("runner.handler")]
    # It makes a bucket of its own, for deployments.
    stack.of_type("AWS::S3::Bucket").pop("ServerlessDeploymentBucket")
    stack.check_buckets()


def synthesized(recipe: Path) -> Stack:
    [python, *app] = json.loads((recipe / "cdk.json").read_text())["app"].split()
    assert python == "python"
    run(sys.executable, *app, cwd=recipe, CDK_OUTDIR=str(recipe / "cdk.out"))
    template = json.loads((recipe / "cdk.out" / "Later.template.json").read_text())
    assert lint(template) == []
    return Stack(template)


@copy_of("cdk")
def test_cdk(recipe: Path) -> None:
    """CDK and CloudFormation accept the recipe, and the runner is set up as it must be."""
    stack = synthesized(recipe)
    assert stack.runners() == [runner(SHARD="0/1")]
    stack.check_buckets()


@copy_of("cdk")
def test_cdk_with_shards(recipe: Path) -> None:
    """Four shards are four functions with a schedule each, and each has its own share."""
    app = recipe / "stack.py"
    app.write_text(app.read_text().replace("SHARDS = 1", "SHARDS = 4"))
    stack = synthesized(recipe)
    assert stack.runners() == [runner(SHARD=f"{shard}/4") for shard in range(4)]
    # One more for the consumer, and one that CDK itself needs to set up notifications.
    assert len(stack.of_type("AWS::Lambda::Function")) == 4 + 2


def test_buckets() -> None:
    """CloudFormation accepts the buckets for runners outside Lambda, and the policy is theirs."""
    template = load("buckets/template.yaml")
    assert lint(template) == []
    stack = Stack(template)
    stack.check_buckets()
    [policy] = stack.of_type("AWS::IAM::ManagedPolicy").values()
    assert grants(policy["PolicyDocument"]) == RUNNER


# --- Terraform ------------------------------------------------------------------------------------


def unquoted(value: Any) -> Any:
    """Take off what python-hcl2 leaves of the syntax."""
    if isinstance(value, list):
        return [unquoted(it) for it in value]
    if isinstance(value, dict):
        items = value.items()
        return {unquoted(key): unquoted(it) for key, it in items if not key.startswith("__")}
    return value.strip('"') if isinstance(value, str) else value


def test_terraform() -> None:
    """The recipe parses, and the runner is set up as it must be."""
    import hcl2  # noqa: PLC0415 - only tox -e recipes has it

    parsed = unquoted(hcl2.loads(read("terraform/main.tf")))
    [names] = parsed["locals"]
    made = {
        (kind, name): arguments
        for block in parsed["resource"]
        for kind, named in block.items()
        for name, arguments in named.items()
    }
    function = made["aws_lambda_function", "runner"]
    invoke = made["aws_lambda_function_event_invoke_config", "runner"]
    schedule = made["aws_scheduler_schedule", "every_minute"]
    [rule] = made["aws_s3_bucket_lifecycle_configuration", "uploads"]["rule"]
    assert rule["abort_incomplete_multipart_upload"] == [{"days_after_initiation": 1}]
    [environment] = function["environment"]
    [target] = schedule["target"]
    [window] = schedule["flexible_time_window"]
    assert target["arn"] == "${aws_lambda_function.runner.arn}"
    assert invoke["function_name"] == "${aws_lambda_function.runner.function_name}"
    policy = string.Template(read("terraform/policy.json")).substitute(names)
    assert {
        "timeout": function["timeout"],
        "concurrency": function["reserved_concurrent_executions"],
        "retries": invoke["maximum_retry_attempts"],
        "age": invoke["maximum_event_age_in_seconds"],
        "schedule": schedule["schedule_expression"],
        "schedule's retries": {
            "MaximumRetryAttempts": target["retry_policy"][0]["maximum_retry_attempts"],
            "MaximumEventAgeInSeconds": target["retry_policy"][0]["maximum_event_age_in_seconds"],
        },
        "schedule's window": window["mode"],
        "handler": function["handler"],
        "environment": {
            name: names[value.removeprefix("${local.").removesuffix("}")]
            for name, value in environment["variables"].items()
        },
        "policy": grants(json.loads(policy)),
    } == runner()
    [trigger] = made["aws_s3_bucket_notification", "arrival"]["lambda_function"]
    assert trigger["events"] == ["s3:ObjectCreated:*"]


def test_terraform_names_only_what_there_is() -> None:
    """Everything that an expression refers to is defined."""
    text = read("terraform/main.tf")
    defined = re.findall(r'^(data|resource) "(\w+)" "(\w+)"', text, re.MULTILINE)
    used = re.findall(r"\b(data\.)?((?:aws|archive)_\w+)\.(\w+)\.\w+", text)
    assert used
    assert {("data" if data else "resource", *rest) for data, *rest in used} <= set(defined)
    local = set(re.findall(r"\blocal\.(\w+)", text))
    assert local <= set(re.findall(r"^  (\w+) += ", text.partition("\n}")[0], re.MULTILINE))


# --- Zappa ----------------------------------------------------------------------------------------

STUB = """#!/bin/sh
echo "$(basename "$0")" "$@" >> "$COMMANDS"
case "$*" in *head-bucket*|update*) exit 1;; esac  # nothing is there yet
"""


@pytest.fixture
def zappa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run deploy.sh, where it writes its settings, and list the commands that it gave."""
    directory = Path(shutil.copytree(RECIPES / "zappa", tmp_path / "zappa"))
    (tmp_path / "bin").mkdir()
    for name in ("aws", "zappa"):
        stub = tmp_path / "bin" / name
        stub.write_text(STUB)
        stub.chmod(0o755)
    log = tmp_path / "commands"
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    run("sh", "deploy.sh", cwd=directory, PATH=path, COMMANDS=str(log))
    monkeypatch.chdir(directory)
    return log.read_text().splitlines()


def test_zappa_deployment(zappa: list[str]) -> None:
    """The script makes tidy buckets, deploys both stages, and sets retries and event age."""
    made = [line for line in zappa if "head-bucket" not in line and "update" not in line]
    *others, invoke = made
    tidy = "aws s3api put-bucket-lifecycle-configuration --bucket {} --lifecycle-configuration {}"
    abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
    rules = json.dumps({"Rules": [{"Status": "Enabled", "Filter": {}, **abort}]})
    assert others == [
        "aws s3 mb s3://my-bucket",
        tidy.format("my-bucket", rules),
        "aws s3 mb s3://shop-emails",
        tidy.format("shop-emails", rules),
        "zappa deploy runner",
        "zappa deploy consumer",
    ]
    words = shlex.split(invoke)
    assert words[:3] == ["aws", "lambda", "put-function-event-invoke-config"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    arguments = {
        option.title().replace("-", ""): int(value) if value.isdigit() else value
        for option, value in options.items()
    }
    client = boto3.client("lambda")
    shape = client.meta.service_model.operation_model("PutFunctionEventInvokeConfig").input_shape
    assert ParamValidator().validate(arguments, shape).generate_report() == ""
    assert arguments == {
        "FunctionName": "later-runner",
        "MaximumRetryAttempts": 0,
        "MaximumEventAgeInSeconds": 60,
    }


@pytest.mark.usefixtures("zappa")
def test_zappa_runner() -> None:
    """Zappa knows every setting of the runner, and makes a rule that wakes it every minute."""
    from moto import mock_aws  # noqa: PLC0415 - it is slow to import
    from zappa import cli as zappa_cli  # noqa: PLC0415 - only tox -e recipes has it

    known = set(re.findall(r'"(\w+)"', Path(zappa_cli.__file__).read_text(encoding="utf-8")))
    with mock_aws():
        cli, arn = zappa_function("runner")
        cli.zappa.schedule_events(arn, cli.lambda_name, cli.stage_config["events"])
        [rule] = boto3.client("events").list_rules()["Rules"]
        [target] = boto3.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert set(cli.stage_config) <= known
    assert target["Arn"] == arn
    policy = Path(cli.stage_config["attach_policy"]).read_text()
    assert findings(policy) == []
    assert {
        "timeout": cli.timeout_seconds,
        "concurrency": cli.lambda_concurrency,
        "schedule": rule["ScheduleExpression"],
        # The rule's name is how Zappa's own handler finds the function to call.
        "handler": rule["Name"].rpartition("-")[2],
        "environment": cli.aws_environment_variables,
        "policy": on_s3(json.loads(policy)),
    } == {
        "timeout": 60,
        "concurrency": 1,
        "schedule": EVERY_MINUTE,
        "handler": "runner.handler",
        "environment": ENVIRONMENT,
        "policy": RUNNER,
    }
    assert (cli.use_apigateway, cli.stage_config["keep_warm"]) == (False, False)
    assert (cli.lambda_name, cli.log_level) == ("later-runner", "INFO")


@pytest.mark.usefixtures("zappa")
def test_zappa_consumer() -> None:
    """Zappa has the target bucket notify the consumer, which may do nothing but log."""
    from moto import mock_aws  # noqa: PLC0415 - it is slow to import

    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="shop-emails")
        cli, arn = zappa_function("consumer")
        cli.zappa.schedule_events(arn, cli.lambda_name, cli.stage_config["events"])
        found = s3.get_bucket_notification_configuration(Bucket="shop-emails")
    [trigger] = found["LambdaFunctionConfigurations"]
    assert (trigger["LambdaFunctionArn"], trigger["Events"]) == (arn, ["s3:ObjectCreated:*"])
    policy = Path(cli.stage_config["attach_policy"]).read_text()
    assert findings(policy) == []
    assert on_s3(json.loads(policy)) == set()


def zappa_function(stage: str) -> tuple[Any, str]:
    """Load a stage's settings, and put its function into moto."""
    from zappa import cli as zappa_cli  # noqa: PLC0415 - only tox -e recipes has it

    cli = zappa_cli.ZappaCLI()
    cli.api_stage = stage
    cli.load_settings("zappa_settings.json")
    cli.zappa.credentials_arn = "arn:aws:iam::123456789012:role/later"
    boto3.client("iam").create_role(RoleName="later", AssumeRolePolicyDocument="{}")
    function = boto3.client("lambda").create_function(
        FunctionName=cli.lambda_name,
        Runtime=cli.runtime,
        Role=cli.zappa.credentials_arn,
        Handler=cli.lambda_handler,
        Code={"ZipFile": b"zip"},
    )
    return cli, function["FunctionArn"]


# --- Outside Lambda -------------------------------------------------------------------------------


def environment_file() -> dict[str, str]:
    lines = read("cron/run-due.env").splitlines()
    return dict(line.split("=") for line in lines if not line.startswith("#"))


def used(command: str) -> set[str]:
    """List the variables that a command uses."""
    return set(re.findall(r"\$[({]?(\w+)", command))


def test_cron() -> None:
    """The runner is woken every minute, never twice at once, with names that are set."""
    from croniter import croniter  # noqa: PLC0415 - only tox -e recipes has it

    [line] = [line for line in read("cron/run-due.cron").splitlines() if line.startswith("*")]
    *fields, user, command = line.split(maxsplit=6)
    assert croniter.is_valid(" ".join(fields))
    assert fields == ["*"] * 5
    assert user == "run-due"
    # cron takes what follows a % for input: https://man7.org/linux/man-pages/man5/crontab.5.html
    assert "%" not in command
    assert " flock -n " in command
    assert used(command) == ENVIRONMENT.keys() <= environment_file().keys()


def test_systemd(tmp_path: Path) -> None:
    """Both units are valid, and wake the runner every minute, with names that are set."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # its names are in mixed case
    unit.read_string(read("cron/run-due.service"))
    unit.read_string(read("cron/run-due.timer").replace("[Unit]", "[Timer unit]"))
    assert unit["Timer"]["OnCalendar"] == "minutely"
    # A unit that is still active is not started again.
    assert (unit["Service"]["Type"], unit["Service"]["TimeoutStartSec"]) == ("oneshot", "60")
    assert used(unit["Service"]["ExecStart"]) == ENVIRONMENT.keys() <= environment_file().keys()

    systemd = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not here")
    for name in ("run-due.service", "run-due.timer"):
        text = read(f"cron/{name}").replace("/opt/run-due/bin/s3-scheduler", sys.executable)
        (tmp_path / name).write_text(text)
    units = (str(tmp_path / "run-due.service"), str(tmp_path / "run-due.timer"))
    done = subprocess.run([systemd, "verify", *units], capture_output=True, text=True, check=False)
    # It verifies what the units depend on, too, and only warns of a key that it does not know.
    assert [line for line in done.stderr.splitlines() if "run-due" in line] == []


def test_kubernetes() -> None:
    """Kubernetes accepts each manifest, and the job runs every minute, once, one at a time."""
    import kubernetes_validate  # noqa: PLC0415 - only tox -e recipes has it

    account, cron_job = yaml.safe_load_all(read("kubernetes/run-due.yaml"))
    for manifest in (account, cron_job):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    spec = cron_job["spec"]
    job = spec["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert {
        "schedule": spec["schedule"],
        "timeout": job["activeDeadlineSeconds"],
        "concurrency": spec["concurrencyPolicy"],
        "retries": (job["backoffLimit"], pod["restartPolicy"]),
        "age": spec["startingDeadlineSeconds"],
    } == {
        "schedule": "* * * * *",
        "timeout": 60,
        "concurrency": "Forbid",
        "retries": (0, "Never"),
        "age": 60,
    }


def test_kustomization() -> None:
    """What is edited there is what the job uses: the names, the image, the account."""
    kustomization = yaml.safe_load(read("kubernetes/kustomization.yaml"))
    assert kustomization["resources"] == ["run-due.yaml"]
    [generator] = kustomization["configMapGenerator"]
    [image] = kustomization["images"]
    account, cron_job = yaml.safe_load_all(read("kubernetes/run-due.yaml"))
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == image["name"]
    assert container["envFrom"] == [{"configMapRef": {"name": generator["name"]}}]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    names = dict(literal.split("=") for literal in generator["literals"])
    command = " ".join([*container["command"], *container["args"]])
    assert used(command) == ENVIRONMENT.keys()
    assert names.items() >= ENVIRONMENT.items()


def test_dockerfile() -> None:
    """The image is made of files that the checkout has."""
    root = RECIPES.parents[1]
    copied = re.findall(r"^COPY (.+) \S+$", read("kubernetes/Dockerfile"), re.MULTILINE)
    files = [name for line in copied for name in line.split()]
    assert files
    assert [name for name in files if not (root / name).exists()] == []


# --- What all recipes have in common --------------------------------------------------------------

BLOCKS = {
    "sam": "template.yaml",
    "serverless": "serverless.yml",
    "cdk": "stack.py",
    "terraform": "main.tf",
    "zappa": "deploy.sh",
    "cron": "run-due.env",
    "kubernetes": "kustomization.yaml",
    "buckets": "template.yaml",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_name_is_in_one_block(name: str) -> None:
    """Whoever has edited the block at the top of one file has edited every name."""
    found = [
        (path.name, number)
        for path in (RECIPES / name).rglob("*")
        if path.is_file() and path.name != "README.md" and path.suffix != ".pyc"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines())
        if "my-bucket" in line or "shop-emails" in line
    ]
    files = {file for file, _ in found}
    lines = [number for _, number in found]
    assert files == {BLOCKS[name]}
    assert len(lines) == 2
    assert max(lines) - min(lines) <= 2
    assert f"({BLOCKS[name]})" in read(f"{name}/README.md")


@pytest.mark.parametrize(
    "path",
    ["cdk/runner/app.py", "terraform/runner/app.py", "serverless/runner.py", "zappa/runner.py"],
)
def test_the_runner_is_the_same_everywhere(path: str) -> None:
    """Its handler is there under the name that the recipe gives, and reads what the recipe sets."""
    assert read(path) == read("sam/runner/app.py")
    assert set(re.findall(r'os\.environ\["(\w+)"\]', read(path))) == ENVIRONMENT.keys()


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("README.md")), ids=str)
def test_links(path: Path) -> None:
    """Whatever a README links to in this repository is there."""
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
