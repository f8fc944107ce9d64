package compose

import (
	"fmt"
	"strings"
)

// parseEnv reads NAME=VALUE lines, as those of a .env file. Values may be in double quotes, in which variables and escapes count, or in single
// quotes, in which nothing does, and may then have several lines. Variables are those of lookup, or else of lines above.
func parseEnv(name, text string, lookup Lookup) (map[string]string, error) {
	env := map[string]string{}
	known := func(name string) (string, bool) {
		if value, ok := lookup(name); ok {
			return value, true
		}
		value, ok := env[name]
		return value, ok
	}
	line := 1
	for text != "" {
		var row string
		row, text, _ = strings.Cut(text, "\n")
		at := line
		line++
		row = strings.TrimSpace(row)
		if row == "" || row[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(row, "export ")), "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "" || strings.ContainsAny(key, " \t\"'") {
			return nil, fmt.Errorf("%s:%d: %q is not NAME=VALUE", name, at, row)
		}
		if !ok {
			if value, ok := lookup(key); ok {
				env[key] = value
			}
			continue
		}
		if value != "" && (value[0] == '"' || value[0] == '\'') {
			for closing(value) < 0 && text != "" {
				row, text, _ = strings.Cut(text, "\n")
				value += "\n" + row
				line++
			}
		}
		value, err := envValue(value, known)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, at, err)
		}
		env[key] = value
	}
	return env, nil
}

// closing returns where the quote ends that a value begins with; -1 for nowhere.
func closing(value string) int {
	for i := 1; i < len(value); i++ {
		switch {
		case value[i] == '\\' && value[0] == '"':
			i++
		case value[i] == value[0]:
			return i
		}
	}
	return -1
}

func envValue(value string, lookup Lookup) (string, error) {
	if value == "" {
		return "", nil
	}
	quote := value[0]
	if quote != '"' && quote != '\'' {
		if before, _, ok := strings.Cut(value, " #"); ok {
			value = strings.TrimSpace(before)
		}
		return interpolate(value, lookup)
	}
	end := closing(value)
	if end < 0 {
		return "", fmt.Errorf("the closing quote of %s is missing", value)
	}
	value = value[1:end]
	if quote == '\'' {
		return value, nil
	}
	value = strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`, `\$`, "$$").Replace(value)
	return interpolate(value, lookup)
}
