// Kilnd serves BuildKit's API with kiln, for docker buildx and other clients of BuildKit. This package is its command line: flags, the
// configuration file, sockets, signals. Under the name buildkitd it is called as that is; under the name buildctl it does what buildx'
// drivers want of that program. With the first argument kiln it does what kiln does, and can run frontends that are images.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/cli"
	"github.com/kilnbuild/kiln/daemon"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
)

// Exit statuses, as of kiln.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitInternal = 125
)

// gcPercent is GOGC where the user has not set it, as for kiln.
const gcPercent = 200

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	name := filepath.Base(os.Args[0])
	if len(os.Args) > 1 && os.Args[1] == app.AsKiln {
		os.Exit(cli.Main(os.Args[2:], frontends))
	}
	var err error
	if name == "buildctl" {
		err = buildctl(context.Background(), os.Args[1:])
	} else {
		err = serve(name, os.Args[1:])
	}
	var done *doneError
	var usage *input.Error
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
		return
	case errors.As(err, &done):
		os.Exit(done.status)
	}
	complain(err.Error())
	if errors.As(err, &usage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

// frontends makes what runs frontends that are images for the command line of kiln.
func frontends(b *build.Builder, root *store.Root, say func(text string)) (build.Frontends, error) {
	return daemon.NewFrontends(b, root, say)
}

// doneError is a kilnd that another one was, and said everything about.
type doneError struct{ status int }

func (e *doneError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// complain tells the operator something.
func complain(text string) { fmt.Fprintf(os.Stderr, "kilnd: %s\n", termtext.Line(text)) }

// serve is the daemon.
func serve(name string, args []string) error {
	if err := userns.Enter(); err != nil {
		return err
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // secrets are in memory; it cannot fail with these arguments
	s, err := read(name, args)
	if err != nil || s == nil {
		return err
	}
	fetch.UserAgent = "buildkit/" + daemon.APIVersion + " kiln/" + version.String() // some servers know that
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	if userns.Needed() {
		to := make(chan syscall.Signal, 8)
		go func() {
			for sig := range signals {
				to <- sig.(syscall.Signal)
			}
		}()
		status, err := userns.Run(to)
		if err != nil {
			return err
		}
		return &doneError{status}
	}
	userns.Told(func(sig syscall.Signal) { signals <- sig })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return s.run(ctx, signals)
}

// run serves until a signal comes.
func (s *settings) run(ctx context.Context, signals <-chan os.Signal) (err error) {
	dir, err := s.config.RootDir(s.root)
	if err != nil {
		return err
	}
	if err := rootdir.Enter(dir); err != nil {
		return fmt.Errorf("open the root directory %s: %w", dir, err)
	}
	root, err := store.Open(ctx, ".", s.config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if _, err := root.Work(); err != nil {
		return err
	}
	builder, err := build.New(root, registry.New(s.config.Registries), s.config)
	if err != nil {
		return err
	}
	server, err := daemon.New(daemon.Config{
		Builder: builder, Root: root, Entitlements: s.entitlements, Labels: s.labels, ProvenanceEnv: s.provenance, Debug: s.debug, Log: complain,
	})
	if err != nil {
		return err
	}
	// Only now: the socket may be in the root directory, as BuildKit's users have it, and one with other files is refused as long as it is
	// new.
	listeners, err := listen(&s.listening)
	if err != nil {
		return err
	}
	defer listeners.close()
	failed := make(chan error, len(listeners.all))
	var servers []*grpc.Server
	for _, l := range listeners.all {
		g := server.GRPC(grpc.Creds(l.credentials))
		servers = append(servers, g)
		go func() { failed <- g.Serve(l.Listener) }()
		complain("listening on " + l.address)
	}
	select {
	case err = <-failed:
		return err
	case <-signals:
	}
	complain("stopping once the builds that run have ended; a second signal ends them")
	drain, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-signals:
			cancel()
			// A client that does not read what it is sent keeps its build from ending as long as it is connected.
			time.AfterFunc(lastAnswers, func() {
				for _, g := range servers {
					g.Stop()
				}
			})
		case <-drain.Done():
		}
	}()
	server.Drain(drain)
	ended := drain.Err() == nil
	cancel()
	for _, g := range servers {
		stop(g, ended)
	}
	return nil
}

// lastAnswers is how long the answers to the last builds may take on their way.
const lastAnswers = 2 * time.Second

// stop ends a server, after it has answered what it was asked if wait is set.
func stop(g *grpc.Server, wait bool) {
	if wait {
		late := time.AfterFunc(lastAnswers, g.Stop)
		defer late.Stop()
		g.GracefulStop()
	}
	g.Stop()
}

// entitlements are those that --allow-insecure-entitlement takes.
var entitlements = []string{"network.host", "security.insecure", "device"}

// checkEntitlement returns an error for one that does not exist.
func checkEntitlement(name string) error {
	for _, e := range entitlements {
		if e == name {
			return nil
		}
	}
	return fmt.Errorf("there is no entitlement %s: use %s", name, strings.Join(entitlements, ", "))
}
