package android.content.res;

import java.io.IOException;
import java.io.InputStream;

/** What a model's class calls of Android; for the compiler only, the phone has the real one. */
public final class AssetManager {
    public native InputStream open(String fileName) throws IOException;

    public native AssetFileDescriptor openFd(String fileName) throws IOException;
}
