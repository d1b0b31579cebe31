"""Encoding the images of prompts: each once, several of one shape in one forward, for all who wait for them."""

import logging
from collections.abc import Callable
from itertools import islice

from idefics_chat.inference.family import EncodedImage, Family, PreparedImage
from idefics_chat.inference.job import Job
from idefics_chat.inference.running_jobs import RunningJobs

logger = logging.getLogger(__name__)

MOST_TOGETHER = 16
"""Images that are encoded in one go."""

KeepFeatures = Callable[[str, PreparedImage, EncodedImage], None]
"""Takes what was made of an image, by digest, to keep it elsewhere; must not wait."""

Missing = list[tuple[str, PreparedImage]]


class ImageEncoding:
    """Encodes images for jobs whose prompts are to be read."""

    def __init__(self, family: Family, jobs: RunningJobs, keep_features: KeepFeatures | None) -> None:
        self._family = family
        self._jobs = jobs
        self._keep_features = keep_features

    def take_known(self, job: Job) -> None:
        """Keep the images that a new job brings along, encoded elsewhere."""
        for digest, image in job.encoded_images().items():
            self._jobs.counters.encodes_saved += 1
            if self._jobs.features.get(digest) is None:
                self._jobs.features.put(digest, image)

    def encode(self, job: Job, digests: set[str]) -> bool:
        """Encode those images, unless all are encoded or known, and others that are waited for; whether any was.

        Raises whatever the model raises, where one of the job's own images cannot be encoded.
        """
        missing = self._missing(job, digests)
        if not missing:
            return False
        together = self._with_others(job, missing)
        try:
            encoded = self._family.encode([image for _, image in together])
        except Exception:
            if len(together) == 1:
                raise
            logger.warning("images could not be encoded together; trying one by itself", exc_info=True)
            together = together[:1]
            encoded = self._family.encode([together[0][1]])
        for (digest, prepared), image in zip(together, encoded, strict=True):
            self._take_encoded(digest, prepared, image)
        return True

    def _missing(self, job: Job, digests: set[str]) -> Missing:
        """Those of a job's images that are to be encoded; what is known of the others is given to the job."""
        missing = []
        for digest, image in list(job.images.items()):
            if digest not in digests or not isinstance(image, PreparedImage):
                continue
            if (known := self._jobs.features.get(digest)) is not None:
                job.images[digest] = known
                self._jobs.counters.encodes_saved += 1
            else:
                missing.append((digest, image))
        return missing

    def _with_others(self, job: Job, missing: Missing) -> Missing:
        """Images to encode in one go, the first of the missing ones first: more than it only if that holds up fewer
        requests than it serves, and only of the same shape."""
        rows, waiting = self._jobs.rows, self._jobs.waiting
        joining = len(rows.reading) + len(waiting)
        most = min(MOST_TOGETHER, max(1, joining // max(1, len(rows.decoding))))
        wanted = dict(missing)
        for other in [*rows.reading, *islice(waiting, rows.max_rows)]:
            if other is not job:
                wanted |= dict(self._missing(other, other.digests_from(rows.start_of(other))))
        first = missing[0][1]
        return [(digest, image) for digest, image in wanted.items() if image.shape == first.shape][:most]

    def _take_encoded(self, digest: str, prepared: PreparedImage, image: EncodedImage) -> None:
        """Give an image that was encoded to those that wait for it, and keep it for later."""
        self._jobs.features.put(digest, image)
        self._jobs.counters.images_encoded += 1
        if self._keep_features is not None:
            self._keep_features(digest, prepared, image)
        for job in self._jobs:
            if digest in job.images:
                job.images[digest] = image
