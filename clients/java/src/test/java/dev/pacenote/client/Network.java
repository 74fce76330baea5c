package dev.pacenote.client;

import com.google.protobuf.MessageLite;
import dev.pacenote.v1.LeaseResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Predicate;

/** What lies between a client and its server, and breaks as a test says. Methods are meant by their bare names. */
final class Network implements ClientInterceptor {
    /** Calls of these methods do not reach the server. */
    volatile Predicate<String> isCut = method -> false;
    /** Each different request to these is lost once; or its answer, where that is said. */
    volatile Predicate<String> losesOnce = method -> false;
    volatile boolean losesAnswers;
    /** Streams are ended with OK after so many messages: the work of a proxy. */
    volatile int messagesMax = Integer.MAX_VALUE;
    /** Where it is set, work that was leased arrives no sooner, and not at all where the call is cancelled before. */
    volatile CountDownLatch letsWorkPass;
    final CountDownLatch hasWork = new CountDownLatch(1);
    final List<String> lost = Collections.synchronizedList(new ArrayList<>());
    final List<String> begun = Collections.synchronizedList(new ArrayList<>());
    final List<String> answered = Collections.synchronizedList(new ArrayList<>());
    private final Set<Object> seen = ConcurrentHashMap.newKeySet();

    long count(List<String> calls, String method) {
        synchronized (calls) {
            return calls.stream().filter(method::equals).count();
        }
    }

    @Override
    public <Q, A> ClientCall<Q, A> interceptCall(MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
        String name = method.getBareMethodName();
        return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
            private final Context context = Context.current();
            private volatile boolean isLost;
            private boolean isGone;

            @Override
            public void start(Listener<A> listener, Metadata headers) {
                begun.add(name);
                super.start(new SimpleForwardingClientCallListener<>(listener) {
                    private int messages;
                    private boolean isOver;

                    @Override
                    public void onMessage(A message) {
                        hold(message);
                        if (isLost || isOver) {
                            return;
                        }
                        super.onMessage(message);
                        if (++messages == messagesMax) {
                            isOver = true;
                            cancel("the proxy ended it", null);
                            super.onClose(Status.OK, new Metadata());
                        }
                    }

                    @Override
                    public void onClose(Status status, Metadata trailers) {
                        if (status.isOk()) {
                            answered.add(name);
                        }
                        if (!isOver) {
                            Status broken = Status.UNAVAILABLE.withDescription("the connection broke");
                            super.onClose(isLost ? broken : status, isLost ? new Metadata() : trailers);
                        }
                    }
                }, headers);
            }

            private void hold(A message) {
                if (letsWorkPass != null && message instanceof LeaseResponse work && work.getLeasedJobsCount() > 0) {
                    hasWork.countDown();
                    while (letsWorkPass.getCount() > 0 && !isLost) {
                        LockSupport.parkNanos(1_000_000);
                        isLost = context.isCancelled();
                    }
                }
            }

            @Override
            public void sendMessage(Q message) {
                boolean isCutNow = isCut.test(name);
                if (losesOnce.test(name) && seen.add(List.of(name, ((MessageLite) message).toByteString()))) {
                    lost.add(name);
                    isLost = true;
                }
                if (isCutNow || isLost && !losesAnswers) {
                    isLost = true;
                    isGone = true;
                    cancel("the connection broke", null);
                } else {
                    super.sendMessage(message);
                }
            }

            @Override
            public void halfClose() {
                if (!isGone) {
                    super.halfClose();
                }
            }
        };
    }
}
