/**
 * Client and worker for Pacenote: submit jobs, watch them to their end, and do them.
 *
 * <p>Thin over what is generated in {@code dev.pacenote.v1}: what it adds is what has to go on when a connection
 * breaks or a server is started again. All other calls are made with the generated stubs as they are.
 */
package dev.pacenote.client;
