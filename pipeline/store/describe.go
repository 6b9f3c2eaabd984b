package store

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// unitSuffixes are the last words of a key that name a unit.
var unitSuffixes = map[string]string{
	"c": "°C", "celsius": "°C", "f": "°F", "fahrenheit": "°F", "k": "K", "kelvin": "K",
	"pct": "%", "percent": "%", "ppm": "ppm", "ppb": "ppb", "lux": "lx", "db": "dB", "dbm": "dBm",
	"v": "V", "mv": "mV", "volts": "V", "a": "A", "ma": "mA", "amps": "A",
	"w": "W", "kw": "kW", "watts": "W", "wh": "Wh", "kwh": "kWh", "hz": "Hz", "khz": "kHz", "rpm": "rpm",
	"pa": "Pa", "hpa": "hPa", "kpa": "kPa", "bar": "bar", "mbar": "mbar", "psi": "psi",
	"mm": "mm", "cm": "cm", "m": "m", "km": "km", "kmh": "km/h", "kph": "km/h", "mph": "mph",
	"g": "g", "kg": "kg", "l": "l", "ml": "ml", "lpm": "l/min", "s": "s", "sec": "s", "ms": "ms", "min": "min",
	"deg": "°",
}

// quantity is what a word in a key says is measured.
type quantity struct{ name, unit string }

// quantities are guessed from the words of a key that names no unit. A
// temperature may be in either scale, so it gets none.
var quantities = map[string]quantity{
	"temp": {"temperature", ""}, "temperature": {"temperature", ""},
	"hum": {"humidity", "%"}, "humidity": {"humidity", "%"}, "rh": {"humidity", "%"},
	"batt": {"battery", "%"}, "bat": {"battery", "%"}, "battery": {"battery", "%"}, "soc": {"state of charge", "%"},
	"volt": {"voltage", "V"}, "voltage": {"voltage", "V"}, "current": {"current", "A"}, "power": {"power", "W"},
	"energy": {"energy", "kWh"}, "freq": {"frequency", "Hz"}, "frequency": {"frequency", "Hz"},
	"press": {"pressure", ""}, "pressure": {"pressure", ""}, "rssi": {"RSSI", "dBm"}, "snr": {"SNR", "dB"},
	"co2": {"CO₂", "ppm"}, "illuminance": {"illuminance", "lx"},
}

// describeMetric guesses a display name and a unit from a metric's key, the unit
// empty where nothing speaks for one: temp_c is a "Temperature" in °C. People
// correct it in device_sensors, where it is not touched again.
func describeMetric(key string) (name, unit string) {
	words := keyWords(key)
	if len(words) > 1 {
		if u, ok := unitSuffixes[strings.ToLower(words[len(words)-1])]; ok {
			unit, words = u, words[:len(words)-1]
		}
	}
	for i, w := range words {
		q, ok := quantities[strings.ToLower(w)]
		if !ok {
			continue
		}
		words[i] = q.name
		if unit == "" && i == len(words)-1 {
			unit = q.unit
		}
	}
	if len(words) == 0 {
		return key, ""
	}
	first, size := utf8.DecodeRuneInString(words[0])
	words[0] = string(unicode.ToUpper(first)) + words[0][size:]
	return strings.Join(words, " "), unit
}

// keyWords splits a key at what is neither letter nor digit, and between a small
// letter and a capital.
func keyWords(key string) []string {
	var b strings.Builder
	var last rune
	for _, r := range key {
		if unicode.IsUpper(r) && unicode.IsLower(last) {
			b.WriteByte(' ')
		}
		if unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r) {
			b.WriteRune(r)
		} else {
			b.WriteByte(' ')
		}
		last = r
	}
	return strings.Fields(b.String())
}
