package attrs

import (
	"strings"
	"testing"
)

// Files with keys are the daemon's, and what a client asks its own process for is not the daemon's business.
func TestCacheSpec(t *testing.T) {
	for _, c := range []struct {
		attrs  map[string]string
		export bool
		want   string // the end of the error
	}{
		{map[string]string{"dest": "cache", "reset": "true", "mode": "max"}, true, ""},
		{map[string]string{"src": "cache", "digest": "sha256:0"}, false, ""},
		{map[string]string{"dest": "cache", "sign": "/etc/key"}, true, "the key sign names a file, and those of the daemon are not for its clients"},
		{map[string]string{"src": "cache", "verify": "/etc/key"}, false, "the key verify names a file, and those of the daemon are not for its clients"},
		{map[string]string{"dest": "cache", "image-manifest": "perhaps"}, true, "image-manifest=perhaps is neither true nor false"},
	} {
		s, err := Cache{Type: CacheLocal, Attrs: c.attrs}.Spec(c.export)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%v: %v", c.attrs, err)
		case c.want != "" && (err == nil || !strings.HasSuffix(err.Error(), c.want)):
			t.Errorf("%v: error %v, want …%s", c.attrs, err, c.want)
		case err == nil && s.Attrs["reset"] != "":
			t.Errorf("%v: reset is left", c.attrs)
		}
	}
}
