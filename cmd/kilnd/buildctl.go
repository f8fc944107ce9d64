package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kilnbuild/kiln/internal/input"
)

// buildctl does what buildx' drivers want of the program of that name: it connects standard input and output to the daemon, and tells
// whether that answers.
func buildctl(ctx context.Context, args []string) error {
	flags := pflag.NewFlagSet("buildctl", pflag.ContinueOnError)
	flags.SetInterspersed(false)
	address := flags.String("addr", "", "`ADDRESS` of the daemon (default $BUILDKIT_HOST)")
	flags.Bool("debug", false, "")
	flags.Int("timeout", 5, "")
	if err := flags.Parse(args); err != nil {
		return &input.Error{Err: err}
	}
	if *address == "" {
		*address = os.Getenv("BUILDKIT_HOST")
	}
	if *address == "" {
		*address = defaultAddress("buildctl")
	}
	path, ok := strings.CutPrefix(*address, "unix://")
	if !ok {
		return &input.Error{Err: fmt.Errorf("--addr %s: only unix:// is supported", *address)}
	}
	switch command := strings.Join(flags.Args(), " "); command {
	case "dial-stdio":
		return dialStdio(path)
	case "debug workers":
		return debugWorkers(ctx, *address)
	default:
		return &input.Error{Err: fmt.Errorf("%q: this buildctl is kiln's, and has dial-stdio and debug workers alone", command)}
	}
}

// dialStdio copies between the daemon and standard input and output until one of them ends.
func dialStdio(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(os.Stdout, c)
		ended <- err
	}()
	go func() {
		if _, err := io.Copy(c, os.Stdin); err == nil {
			_ = c.(*net.UnixConn).CloseWrite() // the other direction ends as well
		}
	}()
	return <-ended
}

// debugWorkers lists the workers.
func debugWorkers(ctx context.Context, address string) error {
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := controlapi.NewControlClient(c).ListWorkers(ctx, &controlapi.ListWorkersRequest{})
	if err != nil {
		return err
	}
	if len(resp.Record) == 0 {
		return errors.New("the daemon has no worker")
	}
	fmt.Println("ID\t\t\t\tPLATFORMS")
	for _, w := range resp.Record {
		var platforms []string
		for _, p := range w.Platforms {
			platforms = append(platforms, strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
		}
		fmt.Printf("%s\t%s\n", w.ID, strings.Join(platforms, ","))
	}
	return nil
}
