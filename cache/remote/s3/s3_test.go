package s3

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/cache/remote/remotetest"
)

// open returns a bucket at a server that answers with f.
func open(t *testing.T, f http.HandlerFunc) *Bucket {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	b, err := Open(Options{Bucket: "ci-cache", Region: "eu-north-1", Endpoint: s.URL, AccessKeyID: "id", SecretAccessKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		status      int
		header, xml string
		want        string
		absent      bool
	}{
		{404, "", "<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>", "NoSuchKey: gone", true},
		{404, "", "<Error><Code>NoSuchBucket</Code></Error>", "create the bucket ci-cache", false},
		{403, "", "<Error><Code>AccessDenied</Code></Error>", "check the credentials", false},
		{400, "", "<Error><Code>AuthorizationHeaderMalformed</Code><Region>us-west-2</Region></Error>", "write region=us-west-2", false},
		{301, "us-west-1", "", "write region=us-west-1", false},
		{307, "", "", "check region and endpoint_url", false},
		{400, "", strings.Repeat("x", 1<<20), "400 Bad Request", false},
		{418, "", "<Error><Code>\x1b[2J</Code></Error>", "418", false},
	} {
		b := open(t, func(w http.ResponseWriter, r *http.Request) {
			if tc.header != "" {
				w.Header().Set("X-Amz-Bucket-Region", tc.header)
			}
			w.WriteHeader(tc.status)
			w.Write([]byte(tc.xml))
		})
		_, err := b.Read(t.Context(), "key", 0)
		if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, fs.ErrNotExist) != tc.absent || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%d %s: %v", tc.status, tc.xml, err)
		}
	}
}

// A temporary failure is tried again, and what S3 answers with success and an error inside is one.
func TestTemporaryErrors(t *testing.T) {
	n := 0
	b := open(t, func(w http.ResponseWriter, r *http.Request) {
		switch n++; n {
		case 1:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			w.Write([]byte("<Error><Code>InternalError</Code></Error>"))
		}
	})
	desc, blob := remotetest.Blob("hello")
	if err := b.Write(t.Context(), "key", desc, blob); err != nil || n != 3 {
		t.Errorf("%d requests: %v", n, err)
	}
}

// A server that lists other keys than it was asked for, or one page for ever, is not believed.
func TestHostileList(t *testing.T) {
	for _, text := range []string{
		"<ListBucketResult><Contents><Key>../other</Key></Contents></ListBucketResult>",
		"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>",
		"hello", "<ListBucketResult>" + strings.Repeat("<Contents>", 1000),
	} {
		b := open(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(text)) })
		if err := b.List(t.Context(), "prefix/", func(bucket.Object) error { return nil }); err == nil {
			t.Errorf("List of %.60q succeeded", text)
		}
	}
}

func TestSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	const text = "# keys\n[default]\naws_access_key_id = one\naws_secret_access_key=first=secret\n\n[ other ]\naws_access_key_id=two\naws_secret_access_key=2\naws_session_token=t\n[sso]\nsso_session=x\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("WebIdentityToken") != "who I am" || r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Write([]byte(`<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>` +
			`<AccessKeyId>assumed</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration>` +
			`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`))
	}))
	t.Cleanup(sts.Close)
	container := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"AccessKeyId":"contained","SecretAccessKey":"s","Token":"` + r.Header.Get("Authorization") + `","Expiration":"2100-01-01T00:00:00Z"}`))
	}))
	t.Cleanup(container.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("who I am\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, id, session, err string
		env                    map[string]string
	}{
		{"environment", "env", "token", "", map[string]string{"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "token"}},
		{"default profile", "one", "", "", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file}},
		{"profile", "two", "t", "", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "other"}},
		{"profile without keys", "", "", "export-credentials", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "sso"}},
		{"web identity", "assumed", "t", "", map[string]string{"AWS_ROLE_ARN": "arn:x", "AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ENDPOINT_URL_STS": sts.URL}},
		{"refused web identity", "", "", "assume the role arn:x: .*403", map[string]string{"AWS_ROLE_ARN": "arn:x", "AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ENDPOINT_URL_STS": sts.URL}},
		{"container", "contained", "Bearer x", "", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": container.URL, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Bearer x"}},
		{"container elsewhere", "", "", "by plain http", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://evil.example/"}},
		{"nothing", "", "", "there are none", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
			for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
				t.Setenv(name, "")
			}
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			b, err := Open(Options{Bucket: "bucket", Region: "eu-north-1"})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			c, err := b.credentials.Retrieve(context.Background())
			if tc.err != "" {
				if err == nil || !matches(err.Error(), tc.err) {
					t.Errorf("%v, want %q", err, tc.err)
				}
				return
			}
			if err != nil || c.AccessKeyID != tc.id || c.SessionToken != tc.session {
				t.Errorf("%s, %s, %v", c.AccessKeyID, c.SessionToken, err)
			}
		})
	}
}

func matches(s, pattern string) bool {
	for part := range strings.SplitSeq(pattern, ".*") {
		_, after, ok := strings.Cut(s, part)
		if !ok {
			return false
		}
		s = after
	}
	return true
}
