"""Models spread over devices: members over devices, the streams of a batch over devices."""
