// Command otel receives spans by OTLP over HTTP with protobuf, read by the OpenTelemetry Collector's own code, and writes what it
// received to a file: one OTLP/JSON object a line. For tests; it ends on SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
)

const (
	protobuf = "application/x-protobuf"
	maxBody  = 20 << 20 // as a Collector's receiver has it
)

func main() {
	listen := flag.String("listen", "127.0.0.1:4318", "address to receive at")
	out := flag.String("out", "", "file to append to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, out string) error {
	file, err := os.OpenFile(out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	mux := http.NewServeMux()
	mux.Handle("POST /v1/traces", &receiver{file: file})
	server := &http.Server{Addr: listen, Handler: mux}
	go func() {
		<-ctx.Done()
		_ = server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// receiver appends each request whole: what is in the file was received and understood.
type receiver struct {
	lock      sync.Mutex
	file      *os.File
	marshaler ptrace.JSONMarshaler
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if got := request.Header.Get("Content-Type"); got != protobuf {
		http.Error(w, "content type "+got, http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	export := ptraceotlp.NewExportRequest()
	if err := export.UnmarshalProto(body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := ptraceotlp.NewExportResponse().MarshalProto()
	if err == nil {
		err = r.keep(export.Traces())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", protobuf)
	_, _ = w.Write(answer) // who has gone asks again, or does not
}

func (r *receiver) keep(traces ptrace.Traces) error {
	line, err := r.marshaler.MarshalTraces(traces)
	if err != nil {
		return err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	_, err = r.file.Write(append(line, '\n'))
	return err
}
