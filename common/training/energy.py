"""Energy that a piece of work takes, by codecarbon.

Flow: with measured_energy("AUT") as energy: train … → **energy["energy_kwh"]** → train.json, result record.
"""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def measured_energy(country: str) -> Iterator[dict]:
    """Yield a dict that holds the energy once the block has ended; it stays empty where none can be measured.

    The whole machine is measured, also what else runs on it. Where processors do not tell their power, codecarbon
    estimates it from their type. The work in the block never fails because of the measurement.

    Args:
        country: ISO code of three letters, which decides CO₂ per kWh; "" or "off" = no measurement.

    Yields:
        {"energy_kwh", "co2_kg", "duration_s", "country", "cpu_kwh", "gpu_kwh", "ram_kwh", "codecarbon"}.
    """
    energy: dict = {}
    tracker = None if country in ("", "off") else _started(country)
    try:
        yield energy
    finally:
        if tracker is not None:
            with contextlib.suppress(Exception):
                energy.update(_stopped(tracker))


def _started(country: str):
    logging.getLogger("codecarbon").disabled = True  # it greets even at its lowest level
    try:
        from codecarbon import OfflineEmissionsTracker  # slow to import

        tracker = OfflineEmissionsTracker(
            country_iso_code=country, output_methods=[], log_level="critical", allow_multiple_runs=True
        )
        tracker.start()
    except (Exception, SystemExit) as error:
        print(f"energy is not measured: {type(error).__name__} {error}", flush=True)
        return None
    return tracker


def _stopped(tracker) -> dict:
    tracker.stop()
    found = tracker.final_emissions_data
    return {
        "energy_kwh": found.energy_consumed,
        "co2_kg": found.emissions,
        "duration_s": found.duration,
        "country": found.country_iso_code,
        "cpu_kwh": found.cpu_energy,
        "gpu_kwh": found.gpu_energy,
        "ram_kwh": found.ram_energy,
        "codecarbon": found.codecarbon_version,
    }
