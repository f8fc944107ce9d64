// Package client is what the client of one session provides to a build, over BuildKit's session protocol: directories, secrets, ssh agents,
// credentials, images, uploads, and places to write to. Whatever a client sends is untrusted.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/moby/buildkit/session"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto" // names of files need not be UTF-8
)

// waitForSession is how long a client may take to open the session that its request names.
const waitForSession = 5 * time.Second

// Config says where clients come from, and where what they send is kept.
type Config struct {
	// Sessions are those of the daemon.
	Sessions *Sessions
	// Root is kiln's root directory, and Tmp a directory of this process on the same file system.
	Root, Tmp string
	// User is who the client is: see the function User. Clients that are not the same share nothing.
	User string
	// Limit bounds each directory that the client sends.
	Limit layer.Limit
	// Warn tells people what they should know; it may be nil.
	Warn func(text string)
}

// Client is the client of one session. It is safe for concurrent use.
type Client struct {
	config Config
	id     string

	mu     sync.Mutex
	caller session.Caller
	// session ends when the session does, or when leave is called; both are set with caller.
	session context.Context
	leave   context.CancelFunc
	open    []io.Closer
	// received are the names of the directories that were asked for.
	received []string
	// also are the sessions that are asked for what this one does not have: see Also.
	also []string

	trees  once.Map[string, layer.Tree]
	agents once.Map[string, *sshagent.Agent]
	// others are the clients of other sessions, by id.
	others once.Map[string, *Client]
	// uploads are the files with what was uploaded, by address.
	uploads once.Map[string, string]
}

// New returns the client of the session with an id, which may be opened later; "" is for none.
func New(c Config, id string) *Client { return &Client{config: c, id: id} }

// errNoSession is the error of a build that needs something of a client that provides nothing.
var errNoSession = errors.New("the request has no session, and the build needs something of its client")

// call returns the session, and a context for requests to it: it ends when the session does.
func (c *Client) call(ctx context.Context) (context.Context, session.Caller, error) {
	if c.id == "" {
		return nil, nil, errNoSession
	}
	c.mu.Lock()
	caller := c.caller
	c.mu.Unlock()
	if caller == nil {
		wait, cancel := context.WithTimeout(ctx, waitForSession)
		defer cancel()
		var err error
		var ended context.Context
		if caller, ended, err = c.config.Sessions.get(wait, c.id, c.config.User); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, nil, fmt.Errorf("reach the client: %w", err)
		}
		c.mu.Lock()
		if c.caller == nil {
			c.caller = caller
			c.session, c.leave = context.WithCancel(ended)
		}
		c.mu.Unlock()
	}
	return c.during(ctx), caller, nil
}

// during returns a context that ends when ctx or the session does.
func (c *Client) during(ctx context.Context) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	calling, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.session, func() { cancel(context.Cause(c.session)) })
	context.AfterFunc(ctx, func() { stop() })
	return calling
}

// other returns the client of another session of the same user, which may be opened a moment later, or c if there is none. Whoever knows
// the id of a session of this user may use it: it cannot be guessed.
func (c *Client) other(ctx context.Context, id string) (*Client, error) {
	if id == "" || id == c.id {
		return c, nil
	}
	return c.others.Do(ctx, id, func(ctx context.Context) (*Client, error) {
		other := New(c.config, id)
		_, _, err := other.call(ctx)
		switch {
		case err == nil:
			c.keep(other)
			return other, nil
		case ctx.Err() != nil || c.id == "":
			return nil, err
		}
		return c, nil
	})
}

// maxAlso bounds the sessions that are asked besides the client's own.
const maxAlso = 64

// Also has further sessions of the same user asked for secrets and agents that the client itself does not have. They are those of builds
// that go on, whose results the client builds on: a step of these runs for whichever build needs it first.
func (c *Client) Also(sessions ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range sessions {
		if id != c.id && !slices.Contains(c.also, id) && len(c.also) < maxAlso {
			c.also = append(c.also, id)
		}
	}
}

// ask asks further sessions until one has what is asked for. One that is over has nothing.
func (c *Client) ask(ctx context.Context, has func(*Client) (bool, error)) error {
	c.mu.Lock()
	also := slices.Clone(c.also)
	c.mu.Unlock()
	for _, id := range also {
		other, err := c.other(ctx, id)
		if err != nil {
			return err
		}
		if other == c {
			continue
		}
		if found, err := has(other); found || err != nil {
			return err
		}
	}
	return nil
}

// supports reports whether the client has a method, such as "/moby.filesync.v1.FileSync/DiffCopy".
func supports(caller session.Caller, service, method string) bool {
	return caller.Supports(session.MethodURL(service, method))
}

// keep has something closed by Close.
func (c *Client) keep(x io.Closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, x)
}

// Warn tells people what they should know.
func (c *Client) Warn(text string) {
	if c.config.Warn != nil {
		c.config.Warn(text)
	}
}

// Close ends the use of what the client has sent. The trees that Open returned must not be used any more.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, x := range c.open {
		err = errors.Join(err, x.Close())
	}
	c.open = nil
	if c.leave != nil {
		c.leave()
	}
	return err
}
