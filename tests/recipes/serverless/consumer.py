"""The consumer, your own: a Lambda function that each arriving object starts."""


def handler(event, context):
    for record in event["Records"]:
        print("arrived:", record["s3"]["object"]["key"])
