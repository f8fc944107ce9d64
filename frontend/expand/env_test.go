package expand

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestJSONSize(t *testing.T) {
	for _, text := range []string{"", "abc", `"\` + "\n\r\t\b\f\x00\x1f", "<>&&", "é\u2028\u2029\ufffd", "\xff\xc3", strings.Repeat("a && b\n", 100)} {
		data, err := json.Marshal([]string{text, ""})
		if want := len(data) - len(`[""]`); err != nil || JSONSize(text) != want {
			t.Errorf("%q has %d bytes as JSON, not %d: %v", text, want, JSONSize(text), err)
		}
	}
}
