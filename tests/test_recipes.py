"""The README's deployment recipes and policies, each under the tool that its user would use.

A tool that accepts everything proves nothing: for each there are mistakes that it must find. What
a tool cannot know (that one retry is one too many) is checked here, from what the tool made of the
recipe.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import yaml
from botocore.validate import ParamValidator

import readme

pytestmark = [pytest.mark.recipes, pytest.mark.filterwarnings("default")]

# The tools of npm, and node's own directory, are where tox put them.
NODE_MODULES = Path(os.environ.get("NODE_MODULES", "node_modules"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make the directory that the README has its reader make, and go there."""
    (tmp_path / "run-due").mkdir()
    (tmp_path / "run-due" / "app.py").write_text(readme.find("Set it up", "python", "SHARD"))
    for directory in (tmp_path, tmp_path / "run-due"):
        (directory / "runner-policy.json").write_text(runner_policy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runner_policy():
    return readme.find("Permissions", "json", "later/failed")


def run(*command, cwd, **environment):
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def expect(found, wanted):
    """Say what differs, as a list of problems."""
    return [f"{name} is {found.get(name)}" for name in wanted if found.get(name) != wanted[name]]


# --- CloudFormation, which three of the frameworks end in -------------------------------------


def lint(template):
    from cfnlint.api import lint as cfn_lint  # noqa: PLC0415
    from cfnlint.config import ManualArgs  # noqa: PLC0415

    # W3005 finds that what a tool generated depends twice on the same thing.
    # https://github.com/aws-cloudformation/cfn-lint/blob/main/docs/rules.md
    config = ManualArgs(regions=["us-east-1"], ignore_checks=["W3005"])
    matches = cfn_lint(json.dumps(template), config=config)
    return [f"{match.rule.id} {match.message}" for match in matches]


def ticks(template):
    """Follow every rule to its function: the settings of each, and its environment."""
    by_type = {}
    for name, resource in template["Resources"].items():
        by_type.setdefault(resource["Type"], {})[name] = resource["Properties"]
    found = []
    for rule in by_type.get("AWS::Events::Rule", {}).values():
        if "Targets" not in rule:
            continue
        [target] = rule["Targets"]
        name = target["Arn"]["Fn::GetAtt"][0]
        function = by_type["AWS::Lambda::Function"][name]
        [invoke] = [
            config
            for config in by_type.get("AWS::Lambda::EventInvokeConfig", {}).values()
            if config["FunctionName"] in ({"Ref": name}, name)
        ] or [{}]
        settings = {
            "time-out": function.get("Timeout"),
            "concurrency": function.get("ReservedConcurrentExecutions"),
            "retries": invoke.get("MaximumRetryAttempts"),
            "age": invoke.get("MaximumEventAgeInSeconds"),
            "schedule": rule["ScheduleExpression"],
            "handler": function["Handler"],
        }
        environment = function.get("Environment", {}).get("Variables", {})
        found.append((name, settings, environment))
    return found


EVERY_MINUTE = {
    "time-out": 60,
    "concurrency": 1,
    "retries": 0,
    "age": 60,
    "schedule": "rate(1 minute)",
    "handler": "app.handler",
}


def cloudformation(template, functions=1):
    """Lint it, and find the settings in it: a function for each rule, and a rule for each."""
    problems = lint(template)
    found = ticks(template)
    if len({name for name, _, _ in found}) != functions:
        problems.append(f"{len(found)} functions are woken, not {functions}")
    for _, settings, _ in found:
        problems += expect(settings, EVERY_MINUTE)
    return problems


def sam_translated(template):
    from samtranslator.translator.transform import transform  # noqa: PLC0415

    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            # `sam package` uploads the directory and puts its address in its place.
            resource["Properties"]["CodeUri"] = "s3://deployments/run-due.zip"

    class NoPolicies:  # the recipe names its policy by its ARN, so none is to be looked up
        def load(self):
            return {}

    return transform(template, {}, NoPolicies())


def sam(text, project, extra=""):
    from cfnlint.decode.cfn_yaml import loads  # noqa: PLC0415
    from samtranslator.model.exceptions import InvalidDocumentException  # noqa: PLC0415

    template = json.loads(json.dumps(loads(text)))
    if extra:
        template["Resources"] |= json.loads(json.dumps(loads(extra)))["Resources"]
    try:
        return cloudformation(sam_translated(template))
    except InvalidDocumentException as error:
        return [cause.message for cause in error.causes]


def alarms(text, project):
    return sam(readme.find("Set it up", "yaml", fold="AWS SAM"), project, text)


def not_granted(template):
    """Say which statements of the runner's policy no role of the template has."""
    granted = [
        {**statement, "Action": aslist(statement["Action"])}
        for resource in template["Resources"].values()
        for policy in (resource["Properties"], *resource["Properties"].get("Policies", ()))
        for statement in policy.get("PolicyDocument", {}).get("Statement", ())
    ]
    return [
        f"not granted: {statement}"
        for statement in json.loads(runner_policy())["Statement"]
        if {**statement, "Action": aslist(statement["Action"])} not in granted
    ]


def aslist(value):
    return [value] if isinstance(value, str) else value


def serverless(text, project):
    (project / "run-due" / "serverless.yml").write_text(text)
    osls = NODE_MODULES / "osls" / "bin" / "serverless.js"
    done = run("node", str(osls), "package", cwd=project / "run-due", SLS_TELEMETRY_DISABLED="1")
    if done.returncode:
        return [done.stdout + done.stderr]
    made = project / "run-due" / ".serverless" / "cloudformation-template-update-stack.json"
    template = json.loads(made.read_text())
    return not_granted(template) + cloudformation(template)


def synthesized(text, project):
    (project / "stack.py").write_text(text)
    done = run(sys.executable, "stack.py", cwd=project, CDK_OUTDIR=str(project / "cdk.out"))
    if done.returncode:
        return None, [done.stderr]
    return json.loads((project / "cdk.out" / "RunDue.template.json").read_text()), []


def cdk(text, project):
    template, problems = synthesized(text, project)
    return problems or not_granted(template) + cloudformation(template)


# --- The others -------------------------------------------------------------------------------


def schedule(expression):
    """Let cfn-lint judge a schedule that a framework passes on unseen."""
    rule = {"Type": "AWS::Events::Rule", "Properties": {"ScheduleExpression": expression}}
    return lint({"Resources": {"Rule": rule}})


def zappa(text, project):
    from moto import mock_aws  # noqa: PLC0415
    from zappa import cli as zappa_cli  # noqa: PLC0415

    (project / "zappa_settings.json").write_text(text)
    known = set(re.findall(r'"(\w+)"', Path(zappa_cli.__file__).read_text(encoding="utf-8")))
    with mock_aws():
        cli = zappa_cli.ZappaCLI()
        cli.api_stage = "later"
        cli.load_settings("zappa_settings.json")
        cli.zappa.credentials_arn = "arn:aws:iam::123456789012:role/later"
        role = {"RoleName": "later", "AssumeRolePolicyDocument": "{}"}
        boto3.client("iam").create_role(**role)
        function = {
            "FunctionName": cli.lambda_name,
            "Runtime": cli.runtime,
            "Role": cli.zappa.credentials_arn,
            "Handler": cli.lambda_handler,
            "Code": {"ZipFile": b"zip"},
        }
        arn = boto3.client("lambda").create_function(**function)["FunctionArn"]
        cli.zappa.schedule_events(arn, cli.lambda_name, cli.stage_config.get("events", []))
        [rule] = boto3.client("events").list_rules()["Rules"]
        [target] = boto3.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    found = {
        "time-out": cli.timeout_seconds,
        "concurrency": cli.lambda_concurrency,
        "schedule": rule["ScheduleExpression"],
        "target": target["Arn"],
        # The rule's name is how Zappa's own handler finds the function to call.
        "function": rule["Name"].rpartition("-")[2],
        "keep warm": cli.stage_config.get("keep_warm"),
        "web": cli.use_apigateway,
        "log level": cli.log_level,
        "name": cli.lambda_name,
    }
    policy = json.loads((project / cli.stage_config["attach_policy"]).read_text())
    policy["Statement"] += cli.stage_config["extra_permissions"]
    wanted = {
        "time-out": 60,
        "concurrency": 1,
        "schedule": "rate(1 minute)",
        "target": arn,
        "function": "app.handler",
        "keep warm": False,
        "web": False,
        "log level": "INFO",
        "name": "my-project-later",
    }
    return [
        *(f"Zappa knows no {name}" for name in cli.stage_config if name not in known),
        *expect(found, wanted),
        *schedule(found["schedule"]),
        *iam(json.dumps(policy), project),
    ]


def invalid(service, operation, arguments):
    """Say what AWS's own description of an operation finds wrong with its arguments."""
    shape = boto3.client(service).meta.service_model.operation_model(operation).input_shape
    problems = [f"no parameter {name}" for name in arguments if name not in shape.members]
    report = ParamValidator().validate(arguments, shape)
    return problems + ([report.generate_report()] if report.has_errors() else [])


def aws_command(text, project):
    """Build the request that this command of the AWS CLI makes, and validate it."""
    words = shlex.split(text.replace("\\\n", " "))
    if words[:3] != ["aws", "lambda", "put-function-event-invoke-config"]:
        return [f"{words[:3]} is another command"]
    options = zip(words[3::2], words[4::2], strict=True)
    arguments = {
        "".join(part.title() for part in option.split("-")): int(value)
        if value.isdigit()
        else value
        for option, value in options
    }
    problems = invalid("lambda", "PutFunctionEventInvokeConfig", arguments)
    found = {
        "name": arguments.get("FunctionName"),
        "retries": arguments.get("MaximumRetryAttempts"),
        "age": arguments.get("MaximumEventAgeInSeconds"),
    }
    return problems + expect(found, {"name": "my-project-later", "retries": 0, "age": 60})


# What the providers document, of all that they take and tell: the arguments that a resource must
# have, those that it may have, and its attributes.
# https://registry.terraform.io/providers/hashicorp/aws/latest/docs/resources/NAME (without aws_)
TERRAFORM = {
    "aws_iam_role": ("assume_role_policy", "name", "name arn"),
    "aws_iam_role_policy": ("role policy", "name", "id"),
    "aws_iam_role_policy_attachment": ("role policy_arn", "", ""),
    "aws_lambda_function": (
        "function_name role",
        (
            "filename handler memory_size runtime source_code_hash timeout "
            "reserved_concurrent_executions"
        ),
        "function_name arn",
    ),
    "aws_lambda_function_event_invoke_config": (
        "function_name",
        "maximum_event_age_in_seconds maximum_retry_attempts qualifier",
        "id",
    ),
    "aws_cloudwatch_event_rule": ("schedule_expression", "name", "name arn"),
    "aws_cloudwatch_event_target": ("rule arn", "target_id", ""),
    "aws_lambda_permission": ("action function_name principal", "source_arn statement_id", ""),
}


def terraform(text, project):
    import hcl2  # noqa: PLC0415

    try:
        parsed = hcl2.loads(text)
    except Exception as error:  # noqa: BLE001 - lark has many
        return [str(error)]
    problems, made = [], {}
    for block in parsed["resource"]:
        [(kind, named)] = block.items()
        kind = kind.strip('"')
        [(name, arguments)] = named.items()
        arguments = {key: value for key, value in arguments.items() if key[0].isalpha()}
        made[kind, name.strip('"')] = {
            key: value.strip('"') if isinstance(value, str) else value
            for key, value in arguments.items()
        }
        if kind not in TERRAFORM:
            problems.append(f"no resource {kind}")
            continue
        must, may = (set(names.split()) for names in TERRAFORM[kind][:2])
        problems += [f"{kind} has no {key}" for key in arguments.keys() - must - may]
        problems += [f"{kind} wants {key}" for key in must - arguments.keys()]
    for line in text.splitlines():
        if reference := re.search(r" = (\w+)\.(\w+)\.(\w+)$", line):
            kind, name, attribute = reference.groups()
            if (kind, name) not in made or attribute not in TERRAFORM[kind][2].split():
                problems.append(f"nothing is {kind}.{name}.{attribute}")
    function = made.get(("aws_lambda_function", "run_due"), {})
    invoke = made.get(("aws_lambda_function_event_invoke_config", "run_due"), {})
    rule = made.get(("aws_cloudwatch_event_rule", "every_minute"), {})
    found = {
        "time-out": function.get("timeout"),
        "concurrency": function.get("reserved_concurrent_executions"),
        "retries": invoke.get("maximum_retry_attempts"),
        "age": invoke.get("maximum_event_age_in_seconds"),
        "schedule": rule.get("schedule_expression"),
        "handler": function.get("handler"),
    }
    return problems + expect(found, EVERY_MINUTE) + schedule(str(found["schedule"]))


def kubernetes(text, project):
    import kubernetes_validate  # noqa: PLC0415

    cron_job = yaml.safe_load(text)
    try:
        kubernetes_validate.validate(cron_job, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    spec = cron_job["spec"]
    job = spec["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    found = {
        "time-out": job.get("activeDeadlineSeconds"),
        "concurrency": spec.get("concurrencyPolicy"),
        "retries": (job.get("backoffLimit"), pod.get("restartPolicy")),
        "age": spec.get("startingDeadlineSeconds"),
    }
    wanted = {"time-out": 60, "concurrency": "Forbid", "retries": (0, "Never"), "age": 60}
    [container] = pod["containers"]
    command = shlex.join([*container["command"], *container["args"]])
    return expect(found, wanted) + cron(f"{spec['schedule']} flock -n x {command}", project)


def cron(text, project):
    from croniter import croniter  # noqa: PLC0415

    [line] = text.splitlines()
    fields, command = re.fullmatch(r"((?:\S+ ){5})(.*)", line).groups()
    problems = [] if croniter.is_valid(fields.strip()) else [f"{fields}is no schedule"]
    if fields.split() != ["*"] * 5:
        problems.append(f"{fields}is not every minute")
    # In a crontab an unescaped % ends the command: https://man7.org/linux/man-pages/man5/crontab.5.html
    if "%" in command:
        problems.append("% ends the command")
    if shlex.split(command)[:2] != ["flock", "-n"]:
        problems.append("runs may overlap")
    # Nothing answers there, so that it says only what it makes of its arguments.
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    command = command.replace("/tmp/run-due.lock", "lock")
    said = run("/bin/sh", "-c", command, cwd=project, **nowhere).stderr
    return problems + ([] if "http://127.0.0.1:9" in said else [said])


def iam(text, project):
    from parliament import analyze_policy_string  # noqa: PLC0415

    return [f"{it.issue} {it.detail}" for it in analyze_policy_string(text).findings]


def notification(text, project):
    configuration = json.loads(text)
    arguments = {"Bucket": "b", "NotificationConfiguration": configuration}
    if problems := invalid("s3", "PutBucketNotificationConfiguration", arguments):
        return problems
    [function] = configuration["LambdaFunctionConfigurations"]
    return expect(function, {"Events": ["s3:ObjectCreated:*"]})


SET_UP = "Set it up"
RECIPES = {
    "Zappa": (zappa, (SET_UP, "json"), "Zappa"),
    "Zappa's retries": (aws_command, (SET_UP, "sh"), "Zappa"),
    "AWS SAM": (sam, (SET_UP, "yaml"), "AWS SAM"),
    "Serverless Framework": (serverless, (SET_UP, "yaml"), "Serverless"),
    "CDK": (cdk, (SET_UP, "python"), "CDK"),
    "Terraform": (terraform, (SET_UP, "hcl"), "Terraform"),
    "cron": (cron, (SET_UP, "crontab"), "cron"),
    "Kubernetes": (kubernetes, (SET_UP, "yaml"), "cron"),
    "alarms": (alarms, ("What to alarm on", "yaml"), ""),
    "trigger": (notification, ("The target side", "json"), ""),
    "runner's policy": (iam, ("Permissions", "json", "later/failed"), ""),
    "application's policy": (iam, ("Permissions", "json", "AbortMultipartUpload"), ""),
}
MISTAKES = [
    ("Zappa", '"lambda_concurrency"', '"lambda_concurency"', "Zappa knows no lambda_concurency"),
    ("Zappa", "rate(1 minute)", "rate(1 minutes)", "E3027"),
    ("Zappa", '"timeout_seconds": 60', '"timeout_seconds": 30', "time-out is 30"),
    ("Zappa", "logs:PutLogEvents", "logs:PutLogEvent", "UNKNOWN_ACTION"),
    ("Zappa", "app.handler", "app.handle", "function is app.handle"),
    ("Zappa's retries", "attempts 0", "attempts 3", "retries is 3"),
    ("Zappa's retries", "seconds 60", "seconds 30", "valid min value: 60"),
    ("Zappa's retries", "--maximum-retry", "--max-retry", "no parameter MaxRetryAttempts"),
    ("AWS SAM", "Concurrent", "Concurent", "property ReservedConcurentExecutions not defined"),
    ("AWS SAM", "rate(1 minute)", "rate(1 minutes)", "E3027"),
    ("AWS SAM", "Attempts: 0", "Attempts: 3", "3 is greater than the maximum of 2"),
    ("AWS SAM", "Attempts: 0", "Attempts: 2", "retries is 2"),
    ("AWS SAM", "Seconds: 60", "Seconds: 30", "30 is less than the minimum of 60"),
    ("AWS SAM", "python3.13", "python3.31", "'python3.31' is not one of"),
    ("Serverless Framework", "reservedConcurrency", "reservedConcurency", "unrecognized property"),
    ("Serverless Framework", "rate(1 minute)", "rate(1 minutes)", "must match pattern"),
    ("Serverless Framework", "Attempts: 0", "Attempts: 3", "must be <= 2"),
    ("Serverless Framework", "Attempts: 0", "Attempts: 1", "retries is 1"),
    ("Serverless Framework", "):Statement", "):Statements", "Cannot resolve variable"),
    ("CDK", "reserved_concurrent_", "reserved_concurent_", "unexpected keyword argument"),
    ("CDK", "retry_attempts=0", "retry_attempts=3", "between 0 and 2"),
    ("CDK", "retry_attempts=0", "retry_attempts=1", "retries is 1"),
    ("CDK", "minutes(1)", "minutes(2)", "schedule is rate(2 minutes)"),
    ("CDK", "initial_policy=", "# initial_policy=", "not granted"),
    ("CDK", "    rule.add_target", "    # rule.add_target", "0 functions are woken"),
    ("Terraform", "maximum_retry_attempts", "max_retry_attempts", "has no max_retry_attempts"),
    ("Terraform", "attempts       = 0", "attempts       = 3", "retries is 3"),
    ("Terraform", "rate(1 minute)", "rate(1 minutes)", "E3027"),
    ("Terraform", "event_rule.every_minute.arn", "event_rule.minute.arn", "nothing is"),
    ("Terraform", "reserved_concurrent_executions = 1\n}", "", "Unexpected token"),
    ("cron", "* * * * *", "* * * * 8", "is no schedule"),
    ("cron", "* * * * *", "0 * * * *", "is not every minute"),
    ("cron", "--time-limit", "--time-limits", "unrecognized arguments"),
    ("Kubernetes", "backoffLimit", "backofLimit", "Additional properties are not allowed"),
    ("Kubernetes", "backoffLimit: 0", "backoffLimit: 3", "retries is (3, 'Never')"),
    ("Kubernetes", "Forbid", "Allow", "concurrency is Allow"),
    ("Kubernetes", "restartPolicy: Never", "restartPolicy: Always", "(0, 'Always')"),
    ("alarms", "TreatMissingData: breaching", "TreatMissingData: breach", "'breach' is not one of"),
    ("alarms", "EvaluationPeriods", "EvaluationPeriod", "EvaluationPeriod"),
    ("trigger", "FilterRules", "FilterRule", "Unknown parameter in NotificationConfiguration"),
    ("trigger", "ObjectCreated:*", "ObjectCreated:Put", "Events is ['s3:ObjectCreated:Put']"),
    ("runner's policy", "s3:GetObject", "s3:GetObjects", "UNKNOWN_ACTION"),
    ("runner's policy", "arn:aws:s3:::my-bucket/later/*", "arn:aws:s3:::my-bucket", "RESOURCE_MIS"),
    ("runner's policy", "s3:prefix", "s3:prefixes", "UNKNOWN_CONDITION"),
    ("application's policy", "s3:DeleteObject", "s3:RemoveObject", "UNKNOWN_ACTION"),
    ("application's policy", '"Effect"', '"Affect"', "MALFORMED"),
]


def recipe(name):
    check, place, fold = RECIPES[name]
    return check, readme.find(*place, fold=fold)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, project):
    """The tool that reads it accepts it, and its settings are those that the README explains."""
    check, text = recipe(name)
    assert check(text, project) == []


@pytest.mark.parametrize(("name", "right", "wrong", "problem"), MISTAKES)
def test_mistake(name, right, wrong, problem, project):
    """The check would have found a mistake."""
    check, text = recipe(name)
    assert right in text
    assert problem in "\n".join(check(text.replace(right, wrong), project))


def test_shards(project):
    """The CDK recipe's four shards are four functions with a rule each, and share all targets."""
    _, text = recipe("CDK")
    template, problems = synthesized(text.replace("SHARDS = 1", "SHARDS = 4"), project)
    assert problems == []
    assert cloudformation(template, functions=4) == []
    shares = sorted(environment["SHARD"] for _, _, environment in ticks(template))
    assert shares == ["0/4", "1/4", "2/4", "3/4"]
    targets = [("shop-emails", f"welcome/{number}.json") for number in range(100)]
    for target in targets:
        assert len([share for share in shares if takes(share, *target)]) == 1


def takes(share, bucket, key):
    from s3_scheduler.names import share as share_of  # noqa: PLC0415

    index, shards = map(int, share.split("/"))
    return share_of(bucket, key, shards) == index
