package attrs

import (
	"strings"
	"testing"
)

const lent = ": the daemon lends its clients no credentials of its own"

// Files with keys are the daemon's, and what a client asks its own process for is not the daemon's business.
func TestCacheSpec(t *testing.T) {
	for _, c := range []struct {
		attrs  map[string]string
		export bool
		want   string // the end of the error
		kind   string // CacheLocal if ""
	}{
		{map[string]string{"bucket": "cache", "region": "r", "access_key_id": "a"}, true, "it needs the key secret_access_key" + lent, "s3"},
		{map[string]string{"bucket": "cache", "region": "r", "access_key_id": "a", "secret_access_key": "s"}, true, "", "s3"},
		{map[string]string{"account_url": "https://a.blob.core.windows.net"}, false, "it needs the key secret_access_key" + lent, "azblob"},
		{map[string]string{"url_v2": "https://example.com/"}, false, "it needs the key token" + lent, "gha"},
		{map[string]string{"url": "https://example.com/", "token": "t", "scope": "s"}, true, "", "gha"},
		{map[string]string{"url": "https://old.example/", "url_v2": "https://example.com/", "token": "t", "ghtoken": "t"}, false, "", "gha"},
		{map[string]string{"url": "https://old.example/", "version": "1", "token": "t"}, true, "it needs the key url_v2" + lent, "gha"},
		{map[string]string{"account_url": "https://cdn.example", "account_name": "a", "secret_access_key": "a2V5"}, true, "", "azblob"},
		{map[string]string{"src": "cache", "digest": "sha256:0", "mode": "max", "compression": "zstd"}, false, "", ""},
		{map[string]string{"src": "cache", "mounts": ","}, false, "give ids such as mounts=/root/.npm, or mounts=all", ""},
		{map[string]string{"dest": "cache", "reset": "true", "mode": "max"}, true, "", ""},
		{map[string]string{"src": "cache", "digest": "sha256:0"}, false, "", ""},
		{map[string]string{"dest": "cache", "sign": "/etc/key"}, true,
			"the key sign names a file, and those of the daemon are not for its clients", ""},
		{map[string]string{"src": "cache", "verify": "/etc/key"}, false,
			"the key verify names a file, and those of the daemon are not for its clients", ""},
		{map[string]string{"dest": "cache", "image-manifest": "perhaps"}, true, "image-manifest=perhaps is neither true nor false", ""},
	} {
		kind := CacheLocal
		if c.kind != "" {
			kind = c.kind
		}
		s, err := Cache{Type: kind, Attrs: c.attrs}.Spec(c.export)
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
