from aws_cdk import (
    App,
    Duration,
    Stack,
    aws_iam,
    aws_lambda,
    aws_s3,
    aws_s3_notifications,
    aws_scheduler,
    aws_scheduler_targets,
)

# The names to change. A bucket's name must be new in all of AWS.
FOLDER_BUCKET = "my-bucket"
FOLDER = "later"
TARGET_BUCKET = "shop-emails"
SHARDS = 1  # runners; each takes its share of the targets

app = App()
stack = Stack(app, "Later")
python = aws_lambda.Runtime.PYTHON_3_13

# Where events wait, and where they arrive.
# A copy in parts that is killed leaves an upload.
rules = [aws_s3.LifecycleRule(abort_incomplete_multipart_upload_after=Duration.days(1))]
aws_s3.Bucket(stack, "FolderBucket", bucket_name=FOLDER_BUCKET, lifecycle_rules=rules)
target_bucket = aws_s3.Bucket(
    stack, "TargetBucket", bucket_name=TARGET_BUCKET, lifecycle_rules=rules
)

# The runners deliver what is due, every minute.
statements = [
    aws_iam.PolicyStatement(
        actions=["s3:ListBucket"],
        resources=[f"arn:aws:s3:::{FOLDER_BUCKET}"],
        conditions={"StringLike": {"s3:prefix": f"{FOLDER}/*"}},
    ),
    aws_iam.PolicyStatement(
        actions=["s3:GetObject", "s3:DeleteObject"],
        resources=[f"arn:aws:s3:::{FOLDER_BUCKET}/{FOLDER}/*"],
    ),
    aws_iam.PolicyStatement(
        actions=["s3:PutObject"],
        resources=[
            f"arn:aws:s3:::{TARGET_BUCKET}/*",
            f"arn:aws:s3:::{FOLDER_BUCKET}/{FOLDER}/failed/*",
        ],
    ),
]
for shard in range(SHARDS):
    runner = aws_lambda.Function(
        stack,
        f"Runner{shard}",
        code=aws_lambda.Code.from_asset("runner"),
        handler="app.handler",
        runtime=python,
        memory_size=512,
        timeout=Duration.seconds(60),
        reserved_concurrent_executions=1,
        retry_attempts=0,
        max_event_age=Duration.seconds(60),
        initial_policy=statements,
        environment={
            "FOLDER_BUCKET": FOLDER_BUCKET,
            "FOLDER": FOLDER,
            "TARGET_BUCKET": TARGET_BUCKET,
            "SHARD": f"{shard}/{SHARDS}",
        },
    )
    aws_scheduler.Schedule(
        stack,
        f"EveryMinute{shard}",
        schedule=aws_scheduler.ScheduleExpression.rate(Duration.minutes(1)),
        target=aws_scheduler_targets.LambdaInvoke(
            runner, retry_attempts=0, max_event_age=Duration.seconds(60)
        ),
    )

# The consumer is your own function, started by each object that arrives.
CONSUMER = """
def handler(event, context):
    for record in event["Records"]:
        print("arrived:", record["s3"]["object"]["key"])
"""
consumer = aws_lambda.Function(
    stack,
    "Consumer",
    code=aws_lambda.Code.from_inline(CONSUMER),
    handler="index.handler",
    runtime=python,
)
target_bucket.add_event_notification(
    aws_s3.EventType.OBJECT_CREATED, aws_s3_notifications.LambdaDestination(consumer)
)

app.synth()
