// Program nothing is a server of BuildKit's API that answers every call with success and does nothing. Tests that pass with it prove
// nothing of a server that passes them.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nothing:", err)
		os.Exit(1)
	}
}

func serve(args []string) error {
	socket := ""
	for i, arg := range args {
		if arg == "--addr" && i+1 < len(args) {
			socket = strings.TrimPrefix(args[i+1], "unix://")
		}
	}
	if socket == "" {
		return fmt.Errorf("--addr unix://PATH is missing")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := grpc.NewServer(grpc.UnknownServiceHandler(succeed))
	context.AfterFunc(ctx, s.Stop)
	return s.Serve(l)
}

// preface is what the server of a session waits for: HTTP/2, and no settings.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// succeed answers a call of any method. What it reads and writes has no fields that it knows.
func succeed(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	switch method {
	case controlapi.Control_Session_FullMethodName:
		if err := stream.SendMsg(&controlapi.BytesMessage{Data: []byte(preface)}); err != nil {
			return err
		}
		for stream.RecvMsg(&emptypb.Empty{}) == nil {
		}
		return nil // the client has ended its session
	case controlapi.Control_ListWorkers_FullMethodName: // clients give up without a worker
		return stream.SendMsg(&controlapi.ListWorkersResponse{Record: []*apitypes.WorkerRecord{{
			ID: "nothing", Platforms: []*pb.Platform{{OS: "linux", Architecture: "amd64"}},
		}}})
	}
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	return stream.SendMsg(&emptypb.Empty{})
}
