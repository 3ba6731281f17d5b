"""Where records come from, and the stored public/private/test split."""

from dpsw_ray.data.records import Part, RecordSchema
from dpsw_ray.data.split import Dataset, DatasetInfo, import_dataset, open_dataset

__all__ = ["Dataset", "DatasetInfo", "Part", "RecordSchema", "import_dataset", "open_dataset"]
