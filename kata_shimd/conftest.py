"""Property tests judge what is computed and not how quickly: machines are noisy, and the checks run in two lanes at once."""

from hypothesis import HealthCheck, settings

settings.register_profile("kata-shimd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kata-shimd")
