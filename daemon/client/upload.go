package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/moby/buildkit/session/upload"
)

// uploadHost is the host of addresses that stand for what the client uploads.
const uploadHost = "buildkit-session"

// IsUpload reports whether an address stands for what the client uploads: "http://buildkit-session/…".
func IsUpload(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Scheme == "http" && u.Host == uploadHost
}

// Upload implements session.Uploads, for addresses of which IsUpload is true. A client uploads a file only once, so it is kept until Close.
func (c *Client) Upload(ctx context.Context, address string) (io.ReadCloser, bool, error) {
	u, err := url.Parse(address)
	if err != nil || !IsUpload(address) {
		return nil, false, nil
	}
	file, err := c.uploads.Do(ctx, address, func(ctx context.Context) (string, error) { return c.upload(ctx, u) })
	if err != nil {
		return nil, true, fmt.Errorf("get %s, which the client uploads: %w", address, err)
	}
	f, err := os.Open(file)
	return f, true, err
}

// upload has the client upload a file.
func (c *Client) upload(ctx context.Context, u *url.URL) (string, error) {
	calling, caller, err := c.call(ctx)
	if err != nil {
		return "", err
	}
	calling, cancel := context.WithCancel(calling)
	defer cancel()
	up, err := upload.New(calling, caller, u)
	if err != nil {
		return "", failed(calling, err)
	}
	f, err := os.CreateTemp(c.config.Tmp, "upload-")
	if err != nil {
		return "", err
	}
	c.keep(removing(f.Name()))
	_, err = up.WriteTo(&limited{f, c.config.Limit.OrDefault().Size})
	if err != nil && calling.Err() != nil {
		err = context.Cause(calling)
	}
	return f.Name(), errors.Join(err, f.Close())
}

// removing is a file that is removed when it is closed.
type removing string

// Close implements io.Closer.
func (r removing) Close() error { return os.Remove(string(r)) }

// limited is a writer of so many bytes at most.
type limited struct {
	io.Writer
	left int64
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		return 0, &layer.LimitError{Msg: "it is larger than what is allowed of a client"}
	}
	return l.Writer.Write(p)
}
