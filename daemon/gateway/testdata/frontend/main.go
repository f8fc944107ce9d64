// Command frontend is a frontend for tests. The option "do" says what it does.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

type stdio struct{}

func (stdio) Read(p []byte) (int, error)       { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error)      { return os.Stdout.Write(p) }
func (stdio) Close() error                     { return nil }
func (stdio) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }

func main() {
	do := ""
	var env []string
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "BUILDKIT_") {
			env = append(env, v)
		}
		if what, ok := strings.CutPrefix(value, "do="); ok {
			do = what
		}
	}
	sort.Strings(env)
	links, _ := net.Interfaces()
	definition, _ := os.ReadFile("/run/config/buildkit/metadata/frontend.bin")
	env = append(env, fmt.Sprint("args=", os.Args[1:]), fmt.Sprint("links=", len(links)), fmt.Sprint("uid=", os.Getuid()),
		"definition="+string(definition))
	if do == "fail" {
		fmt.Fprintln(os.Stderr, "it does not like that")
		os.Exit(3)
	}
	if do == "hang up" {
		os.Stdin.Close()
		os.Stdout.Close()
		time.Sleep(time.Hour)
	}
	if do == "noise" {
		for {
			_, _ = os.Stdout.Write(make([]byte, 1<<20))
		}
	}
	conn, err := grpc.NewClient("passthrough:///", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return stdio{}, nil }))
	if err != nil {
		panic(err)
	}
	c := gateway.NewLLBBridgeClient(conn)
	ctx := context.Background()
	if _, err := c.Ping(ctx, &gateway.PingRequest{}); err != nil {
		panic(err)
	}
	if do == "leave" {
		return
	}
	result := &gateway.Result{Metadata: map[string][]byte{"env": []byte(strings.Join(env, "\n"))}}
	if _, err := c.Return(ctx, &gateway.ReturnRequest{Result: result}); err != nil {
		panic(err)
	}
	if do == "stay" {
		time.Sleep(time.Hour)
	}
}
