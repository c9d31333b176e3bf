"""Front ends: waveforms to features, on the device, inside the jitted step."""
