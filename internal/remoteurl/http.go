package remoteurl

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// HTTP is the address of a file.
type HTTP struct {
	// URL has neither credentials nor a fragment.
	URL string
	// User is "user[:password]" of the address, decoded; "" for none. It is a secret.
	User string
}

// IsHTTP reports whether source is the address of a file: http:// or https://, and no git repository.
func IsHTTP(source string) bool {
	scheme, _, _ := strings.Cut(source, "://")
	return (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")) && strings.Contains(source, "://") && !IsGit(source)
}

// ParseHTTP takes the credentials and the fragment off an http(s) address. The error quotes no credentials.
func ParseHTTP(address string) (HTTP, error) {
	if len(address) > maxURL {
		return HTTP{}, fmt.Errorf("a URL is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(address)
	if err != nil {
		return HTTP{}, errors.New("the address of a file is not a URL") // the error of url.Parse quotes what may be a password
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return HTTP{}, fmt.Errorf("%q is not an http or https address with a host", u.Redacted())
	}
	h := HTTP{}
	if u.User != nil {
		h.User = userinfo(u.User)
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	h.URL = u.String()
	return h, nil
}

func userinfo(u *url.Userinfo) string {
	if pw, ok := u.Password(); ok {
		return u.Username() + ":" + pw
	}
	return u.Username()
}

// Shown returns an address as errors and progress name it: without credentials, and without its query, which may be a
// signature.
func Shown(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "a URL"
	}
	if u.User != nil {
		u.User = url.User("xxxxx")
	}
	u.Fragment, u.RawFragment = "", ""
	query := u.RawQuery != ""
	u.RawQuery = ""
	if query {
		return u.String() + "?…"
	}
	return u.String()
}

// WithoutUser returns a source as it was written, but for the user and password of a URL. Anything else is returned unchanged.
func WithoutUser(source string) string {
	scheme, rest, ok := strings.Cut(source, "://")
	if !ok {
		return source
	}
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority = rest[:end]
	}
	at := strings.LastIndexByte(authority, '@')
	if at < 0 || strings.EqualFold(scheme, "ssh") && !strings.Contains(authority[:at], ":") {
		return source
	}
	return scheme + "://xxxxx" + rest[at:]
}
