#!/bin/sh
# The names to change. A bucket's name must be new in all of AWS.
REGION=us-east-1
FOLDER_BUCKET=my-bucket
FOLDER=later
TARGET_BUCKET=shop-emails
ZAPPA_BUCKET=my-zappa-deployments

set -eu
cd "$(dirname "$0")"
export AWS_DEFAULT_REGION="$REGION"

cat > runner-policy.json <<END
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": "s3:ListBucket",
      "Resource": "arn:aws:s3:::$FOLDER_BUCKET",
      "Condition": {"StringLike": {"s3:prefix": "$FOLDER/*"}}
    },
    {
      "Effect": "Allow",
      "Action": ["s3:GetObject", "s3:DeleteObject"],
      "Resource": "arn:aws:s3:::$FOLDER_BUCKET/$FOLDER/*"
    },
    {
      "Effect": "Allow",
      "Action": "s3:PutObject",
      "Resource": ["arn:aws:s3:::$TARGET_BUCKET/*", "arn:aws:s3:::$FOLDER_BUCKET/$FOLDER/failed/*"]
    },
    {
      "Effect": "Allow",
      "Action": ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
      "Resource": "arn:aws:logs:*:*:*"
    }
  ]
}
END

# A stage for each function: the consumer would suffer from the runner's concurrency of 1.
cat > zappa_settings.json <<END
{
  "base": {
    "project_name": "later",
    "aws_region": "$REGION",
    "s3_bucket": "$ZAPPA_BUCKET",
    "runtime": "python3.13",
    "apigateway_enabled": false,
    "keep_warm": false,
    "log_level": "INFO"
  },
  "runner": {
    "extends": "base",
    "timeout_seconds": 60,
    "memory_size": 512,
    "lambda_concurrency": 1,
    "aws_environment_variables": {
      "FOLDER_BUCKET": "$FOLDER_BUCKET",
      "FOLDER": "$FOLDER",
      "TARGET_BUCKET": "$TARGET_BUCKET"
    },
    "attach_policy": "runner-policy.json",
    "events": [{"function": "runner.handler", "expression": "rate(1 minute)"}]
  },
  "consumer": {
    "extends": "base",
    "attach_policy": "consumer-policy.json",
    "events": [{
      "function": "consumer.handler",
      "event_source": {"arn": "arn:aws:s3:::$TARGET_BUCKET", "events": ["s3:ObjectCreated:*"]}
    }]
  }
}
END

# A copy in parts that is killed leaves an upload.
ABORT='"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}'
RULES="{\"Rules\": [{\"Status\": \"Enabled\", \"Filter\": {}, $ABORT}]}"
for bucket in "$FOLDER_BUCKET" "$TARGET_BUCKET"; do
    aws s3api head-bucket --bucket "$bucket" > /dev/null 2>&1 || {
        aws s3 mb "s3://$bucket"
        aws s3api put-bucket-lifecycle-configuration --bucket "$bucket" \
            --lifecycle-configuration "$RULES"
    }
done
for stage in runner consumer; do
    zappa update "$stage" || zappa deploy "$stage"
done

# Zappa has no settings for these.
aws lambda put-function-event-invoke-config --function-name later-runner \
    --maximum-retry-attempts 0 --maximum-event-age-in-seconds 60
