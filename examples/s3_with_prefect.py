"""Photos in S3, answered every night by Prefect: `python examples/s3_with_prefect.py s3://BUCKET [--every-night]`.

The bucket holds photos (s3://BUCKET/photos) and an adapter (`enrich finetune --out s3://BUCKET/adapter`); the table
goes to s3://BUCKET/enriched. Credentials, region and endpoint (AWS_ENDPOINT_URL) are found the standard way.

Without `--every-night` the flow runs once, now, with a Prefect server that lives as long as this process unless
PREFECT_API_URL names another one. With it, this process serves a deployment that runs at 2 o'clock; production has
workers instead (deployments/README.md).
"""

import sys

from flows.enrich_catalog import enrich_catalog


def main(bucket: str, *options: str) -> None:
    places = {"photos": f"{bucket}/photos", "adapter": f"{bucket}/adapter", "output": f"{bucket}/enriched"}
    if "--every-night" in options:
        enrich_catalog.serve("every-night", cron="0 2 * * *", parameters=places)
    else:
        state = enrich_catalog(**places, return_state=True)
        print(f"{state.name}: {state.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
