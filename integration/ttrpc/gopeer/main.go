// Gopeer is the Go implementation of ttrpc at the other end of a unix socket: `gopeer server PATH` or `gopeer client PATH`.
//
// Both serve and call one service, interop.v1.Interop, whose messages are google.protobuf.BytesValue, so that no
// generated code is needed. The client runs every case and prints a line "ok NAME" or "FAIL NAME: what" for each.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "interop.v1.Interop"

type message = wrapperspb.BytesValue

func main() {
	if len(os.Args) != 3 {
		fail(errors.New("usage: gopeer server|client PATH"))
	}
	role, path := os.Args[1], os.Args[2]
	var err error
	if role == "server" {
		err = serve(path)
	} else {
		err = call(path)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Server

func serve(path string) error {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	server.RegisterService(service, &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{
			"Echo":     unary(func(_ context.Context, in []byte) ([]byte, error) { return in, nil }),
			"Fail":     unary(refuse),
			"Metadata": unary(metadata),
			"Deadline": unary(deadline),
			"Hang":     unary(hang),
		},
		Streams: map[string]ttrpc.Stream{
			"Sum":   {Handler: sum, StreamingClient: true},
			"Count": {Handler: count, StreamingServer: true},
			"Chat":  {Handler: chat, StreamingClient: true, StreamingServer: true},
			"Break": {Handler: breakOff, StreamingServer: true},
		},
	})
	fmt.Println("ready")
	return server.Serve(context.Background(), listener)
}

func unary(do func(context.Context, []byte) ([]byte, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var in message
		if err := unmarshal(&in); err != nil {
			return nil, err
		}
		out, err := do(ctx, in.Value)
		return &message{Value: out}, err
	}
}

func refuse(_ context.Context, in []byte) ([]byte, error) {
	return nil, status.Error(codes.FailedPrecondition, "refused "+string(in))
}

func metadata(ctx context.Context, in []byte) ([]byte, error) {
	md, _ := ttrpc.GetMetadata(ctx)
	values, _ := md.Get(string(in))
	return []byte(fmt.Sprint(values)), nil
}

func deadline(ctx context.Context, _ []byte) ([]byte, error) {
	when, ok := ctx.Deadline()
	if !ok {
		return []byte("none"), nil
	}
	return []byte(fmt.Sprint(int(time.Until(when).Seconds() + 0.5))), nil
}

func hang(ctx context.Context, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func sum(_ context.Context, stream ttrpc.StreamServer) (any, error) {
	total := 0
	for {
		var in message
		err := stream.RecvMsg(&in)
		if err == io.EOF {
			return &message{Value: []byte(fmt.Sprint(total))}, nil
		}
		if err != nil {
			return nil, err
		}
		total += len(in.Value)
	}
}

func count(_ context.Context, stream ttrpc.StreamServer) (any, error) {
	var in message
	if err := stream.RecvMsg(&in); err != nil {
		return nil, err
	}
	for i := 0; i < len(in.Value); i++ {
		if err := stream.SendMsg(&message{Value: []byte(fmt.Sprint(i))}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func chat(_ context.Context, stream ttrpc.StreamServer) (any, error) {
	for {
		var in message
		err := stream.RecvMsg(&in)
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := stream.SendMsg(&message{Value: bytes.ToUpper(in.Value)}); err != nil {
			return nil, err
		}
	}
}

func breakOff(_ context.Context, stream ttrpc.StreamServer) (any, error) {
	var in message
	if err := stream.RecvMsg(&in); err != nil {
		return nil, err
	}
	if err := stream.SendMsg(&message{Value: []byte("one")}); err != nil {
		return nil, err
	}
	return nil, status.Error(codes.Aborted, "broke off")
}

// Client

func call(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	cases := []struct {
		name string
		run  func(context.Context, *ttrpc.Client) error
	}{
		{"unary", callUnary}, {"empty", callEmpty}, {"status", callStatus}, {"unimplemented", callUnimplemented},
		{"metadata", callMetadata}, {"deadline", callDeadline}, {"timeout", callTimeout}, {"large", callLarge},
		{"oversize-request", callOversizeRequest}, {"oversize-reply", callOversizeReply}, {"concurrent", callConcurrent},
		{"client-stream", callSum}, {"server-stream", callCount}, {"bidi-stream", callChat}, {"broken-stream", callBreak},
		{"alive", callUnary},
	}
	failed := false
	for _, c := range cases {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := c.run(ctx, client); err != nil {
			failed = true
			fmt.Printf("FAIL %s: %v\n", c.name, err)
		} else {
			fmt.Printf("ok %s\n", c.name)
		}
		cancel()
	}
	if failed {
		return errors.New("some cases failed")
	}
	return nil
}

func invoke(ctx context.Context, client *ttrpc.Client, method string, in []byte) ([]byte, error) {
	var out message
	err := client.Call(ctx, service, method, &message{Value: in}, &out)
	return out.Value, err
}

func want(method string, got []byte, err error, wanted string) error {
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if string(got) != wanted {
		return fmt.Errorf("%s: got %.80q, want %.80q", method, got, wanted)
	}
	return nil
}

func wantCode(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("got %v, want %v", err, code)
	}
	return nil
}

func callUnary(ctx context.Context, client *ttrpc.Client) error {
	out, err := invoke(ctx, client, "Echo", []byte("hello"))
	return want("Echo", out, err, "hello")
}

func callEmpty(ctx context.Context, client *ttrpc.Client) error {
	out, err := invoke(ctx, client, "Echo", nil)
	return want("Echo", out, err, "")
}

func callStatus(ctx context.Context, client *ttrpc.Client) error {
	_, err := invoke(ctx, client, "Fail", []byte("this"))
	if err := wantCode(err, codes.FailedPrecondition); err != nil {
		return err
	}
	if text := status.Convert(err).Message(); text != "refused this" {
		return fmt.Errorf("message %q", text)
	}
	return nil
}

func callUnimplemented(ctx context.Context, client *ttrpc.Client) error {
	_, err := invoke(ctx, client, "Nothing", nil)
	return wantCode(err, codes.Unimplemented)
}

func callMetadata(ctx context.Context, client *ttrpc.Client) error {
	md := ttrpc.MD{}
	md.Append("Some-Key", "a", "b")
	out, err := invoke(ttrpc.WithMetadata(ctx, md), client, "Metadata", []byte("some-key"))
	return want("Metadata", out, err, "[a b]")
}

func callDeadline(ctx context.Context, client *ttrpc.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := invoke(ctx, client, "Deadline", nil)
	return want("Deadline", out, err, "20")
}

func callTimeout(ctx context.Context, client *ttrpc.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := invoke(ctx, client, "Hang", nil)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return wantCode(err, codes.DeadlineExceeded)
}

func callLarge(ctx context.Context, client *ttrpc.Client) error {
	big := bytes.Repeat([]byte("x"), 1<<20)
	out, err := invoke(ctx, client, "Echo", big)
	return want("Echo", out, err, string(big))
}

func callOversizeRequest(ctx context.Context, client *ttrpc.Client) error {
	_, err := invoke(ctx, client, "Echo", make([]byte, 5<<20))
	return wantCode(err, codes.ResourceExhausted)
}

func callOversizeReply(ctx context.Context, client *ttrpc.Client) error {
	_, err := invoke(ctx, client, "Huge", nil)
	return wantCode(err, codes.ResourceExhausted)
}

func callConcurrent(ctx context.Context, client *ttrpc.Client) error {
	var group sync.WaitGroup
	results := make(chan error, 1000)
	for i := 0; i < 1000; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			text := fmt.Sprint(i)
			out, err := invoke(ctx, client, "Echo", []byte(text))
			results <- want("Echo", out, err, text)
		}()
	}
	group.Wait()
	close(results)
	for err := range results {
		if err != nil {
			return err
		}
	}
	return nil
}

func open(ctx context.Context, client *ttrpc.Client, method string, fromClient, fromServer bool, in []byte) (ttrpc.ClientStream, error) {
	var first any
	if !fromClient {
		first = &message{Value: in}
	}
	return client.NewStream(ctx, &ttrpc.StreamDesc{StreamingClient: fromClient, StreamingServer: fromServer}, service, method, first)
}

func callSum(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Sum", true, false, nil)
	if err != nil {
		return err
	}
	for i := 0; i < 10; i++ {
		if err := stream.SendMsg(&message{Value: make([]byte, i)}); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var out message
	err = stream.RecvMsg(&out)
	return want("Sum", out.Value, err, "45")
}

func callCount(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Count", false, true, make([]byte, 50))
	if err != nil {
		return err
	}
	for i := 0; i < 50; i++ {
		var out message
		err := stream.RecvMsg(&out)
		if err := want("Count", out.Value, err, fmt.Sprint(i)); err != nil {
			return err
		}
	}
	return wantEnd(stream)
}

func callChat(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Chat", true, true, nil)
	if err != nil {
		return err
	}
	for _, word := range []string{"one", "", "two"} {
		if err := stream.SendMsg(&message{Value: []byte(word)}); err != nil {
			return err
		}
		var out message
		err := stream.RecvMsg(&out)
		if err := want("Chat", out.Value, err, string(bytes.ToUpper([]byte(word)))); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return wantEnd(stream)
}

func callBreak(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Break", false, true, nil)
	if err != nil {
		return err
	}
	var out message
	err = stream.RecvMsg(&out)
	if err := want("Break", out.Value, err, "one"); err != nil {
		return err
	}
	return wantCode(stream.RecvMsg(&out), codes.Aborted)
}

func wantEnd(stream ttrpc.ClientStream) error {
	var out message
	if err := stream.RecvMsg(&out); err != io.EOF {
		return fmt.Errorf("after the last message: %v, want EOF", err)
	}
	return nil
}
