package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/cli"
	"github.com/kilnbuild/kiln/daemon"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/store"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"kiln":       main,
		"kilnd":      daemonMain,
		"kiln-test":  testMain,
		"kiln-hasty": hasty,
	})
}

// daemonMain is kilnd where it is what kiln is.
func daemonMain() {
	if len(os.Args) < 2 || os.Args[1] != app.AsKiln {
		fmt.Fprintln(os.Stderr, "this kilnd is only kiln")
		os.Exit(app.ExitUsage)
	}
	os.Exit(cli.Main(os.Args[2:], func(b *build.Builder, root *store.Root, say func(string)) (build.Frontends, error) {
		return daemon.NewFrontends(b, root, say)
	}))
}

// testMain is kiln with commands for what no command of kiln does on request.
func testMain() {
	a := app.New(os.Stdout, os.Stderr)
	root := cli.Root(a)
	root.AddCommand(
		&cobra.Command{Use: "panic", RunE: func(*cobra.Command, []string) error { panic("oops") }},
		// wait says when it is ready for a signal, and once more if it is stubborn.
		&cobra.Command{Use: "wait [stubborn]", RunE: func(cmd *cobra.Command, args []string) error {
			fmt.Println("ready")
			<-cmd.Context().Done()
			fmt.Fprintln(os.Stderr, "cleaning up")
			if len(args) > 0 {
				fmt.Println("ready")
				select {}
			}
			return cmd.Context().Err()
		}},
	)
	os.Exit(cli.Execute(a, root, os.Args[1:]))
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("KILN_ROOT", filepath.Join(env.WorkDir, ".kiln"))
			env.Setenv("KILN_CONFIG", os.DevNull)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": cmdStatus, "serve": cmdServe, "ran": cmdRan, "oddbase": cmdOddbase,
		},
	})
}

// cmdStatus is "status N PROGRAM ARG…": the program has to end with exit status N.
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func TestSignals(t *testing.T) {
	// A command that is started with SIGHUP ignored, as by nohup(1), ignores it. One that this process handles is not ignored by commands.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for _, tc := range []struct {
		name   string
		args   []string
		send   []syscall.Signal
		status int
		stderr string
	}{
		{"interrupt", nil, []syscall.Signal{syscall.SIGINT}, 130, "cleaning up\nkiln: interrupted\n"},
		{"terminate", nil, []syscall.Signal{syscall.SIGTERM}, 143, "cleaning up\nkiln: terminated\n"},
		{"hang up", nil, []syscall.Signal{syscall.SIGHUP}, 129, "cleaning up\nkiln: stopped by signal: hangup\n"},
		{"twice", []string{"stubborn"}, []syscall.Signal{syscall.SIGINT, syscall.SIGINT}, 130, "cleaning up\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
			defer cancel()
			cmd := exec.CommandContext(ctx, "kiln-test", append([]string{"wait"}, tc.args...)...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			for _, s := range tc.send {
				lines.Scan() // it is ready for the next one
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tc.status || stderr.String() != tc.stderr {
				t.Errorf("exit status %d, want %d; it said:\n%s", got, tc.status, stderr.String())
			}
		})
	}
}

// TestBrokenPipe shows that a command ends as by SIGPIPE when nobody reads its output, after it has cleaned up, and says nothing.
func TestBrokenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := exec.Command("kiln", "version")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != 128+int(syscall.SIGPIPE) || stderr.Len() > 0 {
		t.Errorf("exit status %d; it said:\n%s", got, stderr.String())
	}
}

// TestBrokenProgress shows that a command whose progress nobody reads is stopped.
func TestBrokenProgress(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	a := app.New(io.Discard, w)
	err = a.WithProgress(t.Context(), "plain", func(ctx context.Context, s *events.Stream) error {
		s.Task(llb.Place{}, "x")
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if err == nil || !strings.Contains(err.Error(), "write progress") {
		t.Errorf("error %v", err)
	}
}
