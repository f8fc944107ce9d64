package httpsource

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/internal/fetch"
)

// hint adds to an error what to do about it.
func hint(err error) error {
	e, ok := errors.AsType[*fetch.StatusError](err)
	if !ok {
		return err
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		name := (&url.URL{Host: e.Host}).Hostname()
		return fmt.Errorf("%w (if the file is private, give --secret id=HTTP_AUTH_TOKEN_%s,env=VARIABLE or HTTP_AUTH_HEADER_%s)", err, name, name)
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w (check the address)", err)
	}
	return err
}

// authorization returns the header for the request's own host; "" for none.
func (c *Client) authorization(ctx context.Context, r Request) (string, error) {
	if r.Authorization != "" {
		return r.Authorization, nil
	}
	if r.User != "" {
		user := r.User
		if !strings.Contains(user, ":") {
			user += ":"
		}
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user)), nil
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return "", errors.New("the address is not a URL")
	}
	for _, prefix := range []string{"HTTP_AUTH_HEADER_", "HTTP_AUTH_TOKEN_"} {
		value, ok, err := c.secret(ctx, prefix+u.Hostname())
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		v := strings.TrimSpace(string(value))
		if strings.ContainsAny(v, "\r\n\x00") {
			return "", fmt.Errorf("secret %s%s has more than one line, and cannot be sent in a header", prefix, u.Hostname())
		}
		if prefix == "HTTP_AUTH_TOKEN_" {
			v = "Bearer " + v
		}
		return v, nil
	}
	return "", nil
}

// run tries until the file is there.
func (d *download) run(ctx context.Context) error {
	way := d.request.Way
	if way == nil {
		t := fetch.NewTransports(nil)
		defer t.CloseIdleConnections()
		u, err := url.Parse(d.request.URL)
		if err != nil {
			return errors.New("the address is not a URL")
		}
		way = t.Way(d.c.Limit.Of(ctx, u.Hostname()))
	}
	client := &http.Client{Transport: way, CheckRedirect: d.redirect}
	d.hashes()
	if d.same(ctx, client) {
		d.unchanged = true
		return nil
	}
	tries := fetch.Tries{Patience: d.c.patience}
	for {
		resumed, err := d.try(ctx, client)
		if err == nil {
			return nil
		}
		if resumed {
			tries.Progress()
		}
		if err := tries.Again(ctx, err); err != nil {
			return hint(err)
		}
	}
}

// same asks whether the file is what it was, without its bytes, as BuildKit does. A server that answers anything else is asked for the
// file.
func (d *download) same(ctx context.Context, client *http.Client) bool {
	if d.old == nil || d.old.ETag == "" {
		return false
	}
	req, err := d.prepare(ctx, http.MethodHead)
	if err != nil {
		return false
	}
	req.Header.Set("If-None-Match", d.old.ETag)
	resp, err := d.c.patience.Do(client, req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	etag := resp.Header.Get("ETag")
	return resp.StatusCode == http.StatusNotModified ||
		resp.StatusCode == http.StatusOK && etag == d.old.ETag && !strings.HasPrefix(etag, "W/")
}

// prepare returns a request without conditions.
func (d *download) prepare(ctx context.Context, method string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, d.request.URL, nil)
	if err != nil {
		return nil, errors.New("the address is not a URL")
	}
	req.Header.Set("User-Agent", fetch.UserAgent)
	maps.Copy(req.Header, d.request.Header)
	req.Header.Set("Accept-Encoding", "gzip") // as BuildKit: what is compressed for the transfer is decompressed
	if d.authorization != "" {
		req.Header.Set("Authorization", d.authorization)
	}
	return req, nil
}

// redirect says where the client may be sent. What is for the first host goes to no other.
func (d *download) redirect(next *http.Request, via []*http.Request) error {
	if err := fetch.CheckRedirect(next, via); err != nil {
		return err
	}
	for _, r := range append(via[1:len(via):len(via)], next) {
		if !fetch.SameOrigin(r.URL, via[0].URL) {
			next.Header.Del("Authorization")
			for name := range d.request.Header {
				next.Header.Del(name)
			}
		}
	}
	return nil
}

// try makes one request, and reads its answer into the file. resumed says that bytes came after those of an earlier one.
func (d *download) try(ctx context.Context, client *http.Client) (resumed bool, err error) {
	req, err := d.prepare(ctx, http.MethodGet)
	if err != nil {
		return false, err
	}
	switch {
	case d.size > 0 && d.validator != "":
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.size))
		req.Header.Set("Accept-Encoding", "identity")
		req.Header.Set("If-Range", d.validator)
	case d.old != nil:
		if d.old.ETag != "" {
			req.Header.Set("If-None-Match", d.old.ETag)
		} else if d.old.Settled {
			req.Header.Set("If-Modified-Since", d.old.LastModified)
		}
	}
	resp, err := d.c.patience.Do(client, req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotModified:
		if d.old == nil || req.Header.Get("Range") != "" {
			return false, fmt.Errorf("%s answers 304 to a request without condition", resp.Request.URL.Host)
		}
		d.unchanged = true
		return false, nil
	case http.StatusOK:
		etag := resp.Header.Get("ETag")
		if d.old != nil && etag != "" && etag == d.old.ETag && !strings.HasPrefix(etag, "W/") {
			d.unchanged = true // a server that does not look at conditions
			return false, nil
		}
		if err := d.begin(resp); err != nil {
			return false, err
		}
	case http.StatusPartialContent:
		if req.Header.Get("Range") == "" || !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", d.size)) {
			return false, fmt.Errorf("%s answers with another part than it was asked for", resp.Request.URL.Host)
		}
		resumed = true
	default:
		return false, fetch.NewStatusError(resp)
	}
	n := d.size
	err = d.read(resp.Body)
	return resumed && d.size > n, err
}

// begin starts over with an answer that has the whole file.
func (d *download) begin(resp *http.Response) error {
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	d.hashes()
	encoded := fetch.Compressed(resp)
	fetch.Decompress(resp)
	d.total = max(0, resp.ContentLength)
	d.etag, d.modified, d.validator, d.settled = resp.Header.Get("ETag"), "", "", false
	d.name = disposed(resp.Header.Get("Content-Disposition"))
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		d.modified = t.UTC().Format(http.TimeFormat)
		answered, err := http.ParseTime(resp.Header.Get("Date"))
		d.settled = err == nil && answered.Sub(t) >= settled
	}
	// A part of a compressed answer would be one of the compressed bytes.
	if d.etag != "" && !strings.HasPrefix(d.etag, "W/") && resp.Header.Get("Accept-Ranges") != "none" && !encoded {
		d.validator = d.etag
	}
	return nil
}

// maxFileName bounds the name of a file in bytes, as file systems do.
const maxFileName = 255

// disposed returns the name of a file that a Content-Disposition gives it, without directories; "" for none that a file can have.
func disposed(header string) string {
	_, params, err := mime.ParseMediaType(header)
	if err != nil {
		return ""
	}
	name := params["filename"]
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	if strings.Trim(name, ".") == "" || len(name) > maxFileName || strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
		return ""
	}
	return name
}

// read appends the body to the file.
func (d *download) read(body io.Reader) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if limit := d.request.MaxSize; limit > 0 && d.size+int64(n) > limit {
				return fmt.Errorf("the file is larger than the %d bytes that are announced", limit)
			}
			if d.size+int64(n) > d.c.limit {
				return fmt.Errorf("the file is larger than the %d GiB that are allowed", MaxSize>>30)
			}
			if _, err := d.file.Write(buf[:n]); err != nil {
				return err
			}
			d.sum.Write(buf[:n])
			if d.other != nil {
				d.other.Write(buf[:n])
			}
			d.size += int64(n)
			if d.request.Received != nil {
				d.request.Received(d.size, d.total)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
