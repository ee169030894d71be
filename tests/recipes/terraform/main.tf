locals { # The names to change. A bucket's name must be new in all of AWS.
  region        = "us-east-1"
  folder_bucket = "my-bucket"
  folder        = "later"
  target_bucket = "shop-emails"
}

terraform {
  required_providers {
    aws     = { source = "hashicorp/aws", version = ">= 5.0" }
    archive = { source = "hashicorp/archive", version = ">= 2.4" }
  }
}

provider "aws" {
  region = local.region
}

# Where events wait, and where they arrive.

resource "aws_s3_bucket" "folder" {
  bucket = local.folder_bucket
}

resource "aws_s3_bucket" "target" {
  bucket = local.target_bucket
}

# A copy in parts that is killed leaves an upload.
resource "aws_s3_bucket_lifecycle_configuration" "uploads" {
  for_each = { folder = aws_s3_bucket.folder.id, target = aws_s3_bucket.target.id }
  bucket   = each.value
  rule {
    id     = "abort-incomplete-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

# The runner delivers what is due, every minute.

data "aws_iam_policy_document" "lambda" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "runner" {
  name               = "later-runner"
  assume_role_policy = data.aws_iam_policy_document.lambda.json
}

resource "aws_iam_role_policy" "runner" {
  role = aws_iam_role.runner.name
  policy = templatefile("${path.module}/policy.json", {
    folder_bucket = local.folder_bucket
    folder        = local.folder
    target_bucket = local.target_bucket
  })
}

resource "aws_iam_role_policy_attachment" "runner_logs" {
  role       = aws_iam_role.runner.name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
}

data "archive_file" "runner" {
  type        = "zip"
  source_dir  = "${path.module}/runner"
  output_path = "${path.module}/runner.zip"
}

resource "aws_lambda_function" "runner" {
  function_name                  = "later-runner"
  role                           = aws_iam_role.runner.arn
  filename                       = data.archive_file.runner.output_path
  source_code_hash               = data.archive_file.runner.output_base64sha256
  handler                        = "app.handler"
  runtime                        = "python3.13"
  memory_size                    = 512
  timeout                        = 60
  reserved_concurrent_executions = 1

  environment {
    variables = {
      FOLDER_BUCKET = local.folder_bucket
      FOLDER        = local.folder
      TARGET_BUCKET = local.target_bucket
    }
  }
}

resource "aws_lambda_function_event_invoke_config" "runner" {
  function_name                = aws_lambda_function.runner.function_name
  maximum_retry_attempts       = 0
  maximum_event_age_in_seconds = 60
}

data "aws_iam_policy_document" "scheduler" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "wake" {
  statement {
    actions   = ["lambda:InvokeFunction"]
    resources = [aws_lambda_function.runner.arn]
  }
}

resource "aws_iam_role" "scheduler" {
  name               = "later-scheduler"
  assume_role_policy = data.aws_iam_policy_document.scheduler.json
}

resource "aws_iam_role_policy" "wake" {
  role   = aws_iam_role.scheduler.name
  policy = data.aws_iam_policy_document.wake.json
}

resource "aws_scheduler_schedule" "every_minute" {
  name                = "later-every-minute"
  schedule_expression = "rate(1 minute)"

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = aws_lambda_function.runner.arn
    role_arn = aws_iam_role.scheduler.arn

    retry_policy {
      maximum_retry_attempts       = 0
      maximum_event_age_in_seconds = 60
    }
  }
}

# The consumer is your own function, started by each object that arrives.

resource "aws_iam_role" "consumer" {
  name               = "later-consumer"
  assume_role_policy = data.aws_iam_policy_document.lambda.json
}

resource "aws_iam_role_policy_attachment" "consumer_logs" {
  role       = aws_iam_role.consumer.name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
}

data "archive_file" "consumer" {
  type        = "zip"
  source_file = "${path.module}/consumer.py"
  output_path = "${path.module}/consumer.zip"
}

resource "aws_lambda_function" "consumer" {
  function_name    = "later-consumer"
  role             = aws_iam_role.consumer.arn
  filename         = data.archive_file.consumer.output_path
  source_code_hash = data.archive_file.consumer.output_base64sha256
  handler          = "consumer.handler"
  runtime          = "python3.13"
}

data "aws_caller_identity" "current" {}

resource "aws_lambda_permission" "arrival" {
  action         = "lambda:InvokeFunction"
  function_name  = aws_lambda_function.consumer.function_name
  principal      = "s3.amazonaws.com"
  source_arn     = aws_s3_bucket.target.arn
  source_account = data.aws_caller_identity.current.account_id
}

resource "aws_s3_bucket_notification" "arrival" {
  bucket     = aws_s3_bucket.target.id
  depends_on = [aws_lambda_permission.arrival]

  lambda_function {
    lambda_function_arn = aws_lambda_function.consumer.arn
    events              = ["s3:ObjectCreated:*"]
  }
}
